"""How long each step takes: what is counted, and over which values."""

import numpy as np
import pytest

from detect import detector
from detect.detector import NETWORK, STEPS, Detector, Timings
from tests.model.tiny import picture, save_tiny


def test_figures_are_those_of_the_latest_values(monkeypatch):
    monkeypatch.setattr(detector, "WINDOW", 100)
    timings = Timings()
    for k in range(250):
        timings.add(NETWORK, float(k))
    found = timings.summary()[NETWORK]
    latest = np.arange(150, 250)
    assert found.count == 250
    assert (found.mean, found.median) == (latest.mean(), np.median(latest))
    assert found.p99 == np.percentile(latest, 99)
    timings.clear()
    assert timings.summary()[NETWORK].count == 0
    assert np.isnan(timings.summary()[NETWORK].median)


def test_a_step_that_fails_is_not_counted():
    timings = Timings()
    with pytest.raises(KeyError), timings.measure(NETWORK):
        raise KeyError
    assert timings.summary()[NETWORK].count == 0


def test_detections_are_counted_by_image_and_by_batch(tmp_path):
    detector = Detector(save_tiny(tmp_path / "tiny"), batch_size=2)
    detector.detect([picture(k, 50, 60) for k in range(5)])
    found = detector.statistics()
    assert {step: found[step].count for step in STEPS} == {
        "decoding": 5,
        "pre-processing": 5,
        "network": 3,
        "post-processing": 5,
    }
    assert all(0 < found[step].median <= found[step].p99 < 10 for step in STEPS)
    detector.reset_statistics()
    assert detector.statistics()[NETWORK].count == 0
