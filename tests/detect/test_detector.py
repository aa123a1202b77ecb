"""Detector: what the network finds, in pixels of the image, whatever it is given."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from common.errors import CheckpointError, DataError, OptionError
from deploy.main import export
from detect import detector as detector_module
from detect.detector import NETWORK, STEPS, Detector, Timings, class_thresholds, select
from engines.preprocess import encode_image, write_input
from machine.runtime import mx
from tests.model.tiny import CLASSES, MEAN, SIZE, picture, save_tiny, tiny_params, tiny_symbol

VIEW = np.array([100, 200, 0.5, 0.25, 0, 0])  # an image of 100 x 200 in an input of 50 x 50
IMAGES = [picture(seed, 60 + 30 * seed, 150 - 20 * seed) for seed in range(3)]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture(scope="module")
def folder(prefix, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    export(prefix, 3, folder)
    return folder


@pytest.fixture(scope="module")
def detector(folder):
    return Detector(folder, threshold=0.0, ctx=mx.cpu())


def _validation(images):
    """det as the training's validation computes it: a Module that is bound for inference."""
    module = mx.mod.Module(tiny_symbol(), data_names=("data",), label_names=None)
    module.bind([("data", (1, 3, *SIZE))], for_training=False)
    module.set_params(*tiny_params())
    data = np.zeros((1, 3, *SIZE), np.float32)
    rows = []
    for image in images:
        write_input(image, np.array(MEAN, np.float32), np.ones(3, np.float32), data[0])
        module.forward(mx.io.DataBatch([mx.nd.array(data)]), is_train=False)
        rows.append(module.get_outputs()[0].asnumpy()[0])
    return rows


def test_folder_prefix_and_validation_agree_to_rounding(prefix, detector):
    found = Detector(prefix, "auto", threshold=0.0).detect(IMAGES)
    for image, rows, other, det in zip(IMAGES, found, detector.detect(IMAGES), _validation(IMAGES), strict=True):
        np.testing.assert_allclose(other, rows, rtol=1e-4, atol=1e-4)
        det = det[det[:, 0] >= 0]
        det = det[np.argsort(-det[:, 1], kind="stable")]
        height, width = image.shape[:2]
        in_pixels = det * np.array([1, 1, width, height, width, height], np.float32)
        np.testing.assert_allclose(rows, in_pixels, rtol=1e-4, atol=1e-4)
        assert len(rows) > 5
        assert (np.diff(rows[:, 1]) <= 0).all()
        assert (rows[:, 2:] >= 0).all()
        assert (rows[:, 4] <= width).all()
        assert (rows[:, 5] <= height).all()


def test_inputs_of_all_kinds_give_the_same(detector, tmp_path):
    pixels = IMAGES[0]
    (tmp_path / "a.png").write_bytes(encode_image(pixels, ".png"))
    expected = detector.detect(pixels)
    assert isinstance(expected, np.ndarray)
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()):
        np.testing.assert_array_equal(detector.detect(image), expected)
    for images in ([pixels, tmp_path / "a.png"], (x for x in (pixels, pixels)), np.stack([pixels, pixels])):
        several = detector.detect(images)
        assert isinstance(several, list)
        assert len(several) == 2
        np.testing.assert_array_equal(several[1], expected)
    assert detector.detect([]) == []


@pytest.mark.parametrize("batch_size", [2, 4])
def test_batches_change_nothing(folder, detector, batch_size):
    images = [*IMAGES, *IMAGES[:2]]
    batched = Detector(folder, threshold=0.0, batch_size=batch_size).detect(images)
    for one, other in zip(detector.detect(images), batched, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_streams_read_no_further_than_a_batch(folder):
    read = []
    stream = Detector(folder, batch_size=2).stream(read.append(k) or IMAGES[0] for k in range(10))
    next(stream)
    assert read == [0, 1]


def test_threads_share_a_detector(detector):
    alone = [detector.detect(image) for image in IMAGES]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector.detect, IMAGES * 8))
    for k, rows in enumerate(together):
        np.testing.assert_array_equal(rows, alone[k % len(IMAGES)])


def test_how_images_fill_the_input_can_be_said(folder, detector):
    height, width = SIZE
    image = picture(9, height // 2, width)
    padded = np.full((height, width, 3), detector.manifest.fill, np.uint8)
    padded[height // 4 : height // 4 + height // 2] = image
    letterboxed = Detector(folder, threshold=0.0, ctx=mx.cpu(), resize_mode="letterbox").detect(image)
    assert np.array_equal(letterboxed[:5, :2], detector.detect(padded)[:5, :2])
    with pytest.raises(OptionError, match="resize mode 'wide': expected force or letterbox"):
        Detector(folder, resize_mode="wide")


def test_thresholds_apply_to_each_class(folder, detector):
    everything = detector.detect(IMAGES[0])
    chosen = Detector(folder, threshold={"red": 0.4, "blue": 0.3, "grün": 1.0}).detect(IMAGES[0])
    limit = np.array([0.4, 1.0, 0.3], np.float32)[everything[:, 0].astype(int)]
    np.testing.assert_array_equal(chosen, everything[everything[:, 1] >= limit])
    assert 0 < len(chosen) < len(everything)


def test_thresholds_have_a_default_and_bounds():
    np.testing.assert_allclose(class_thresholds({"red": 0.2}, CLASSES), [0.2, 0.5, 0.5])
    own = {"red": 0.3, "blue": 0.1}
    np.testing.assert_allclose(class_thresholds(None, CLASSES, own), [0.3, 0.5, 0.1])
    np.testing.assert_allclose(class_thresholds({"red": 0.2}, CLASSES, own), [0.2, 0.5, 0.1])
    np.testing.assert_allclose(class_thresholds(0.0, CLASSES, own), 0)
    with pytest.raises(OptionError, match="'gren': no such class.*red, grün, blue"):
        class_thresholds({"gren": 0.2}, CLASSES)
    for bad in (1.5, -0.1, float("nan")):
        with pytest.raises(OptionError, match="expected 0 to 1"):
            class_thresholds(bad, CLASSES)


def test_selection_skips_holes_sorts_and_clips():
    rows = np.array(
        [
            [1, 0.6, -0.1, 0.2, 0.5, 1.2],
            [-1, 0.9, 0, 0, 1, 1],
            [0, 0.8, 0, 0, 0.5, 0.5],
            [0, 0.4, 0, 0, 0.5, 0.5],
            [-1, -1, -1, -1, -1, -1],
        ],
        np.float32,
    )
    found = select(rows, np.array([0.5, 0.5]), VIEW, (50, 50))
    np.testing.assert_allclose(found, [[0, 0.8, 0, 0, 100, 50], [1, 0.6, 0, 20, 100, 100]], rtol=1e-6)
    assert select(rows[1:2], np.array([0.5]), VIEW, (50, 50)).shape == (0, 6)
    with pytest.raises(CheckpointError, match="more classes"):
        select(rows, np.array([0.5]), VIEW, (50, 50))


def test_selection_maps_back_from_a_letterbox_and_leaves_its_borders_out():
    """An image of 50 x 200 in an input of 100 x 100: scale 0.5, 37 rows above, 38 below."""
    rows = np.array([[0, 0.9, 0.2, 0.37, 0.6, 0.62], [0, 0.8, 0.2, 0.1, 0.6, 0.5], [0, 0.7, 0, 0, 1, 0.36]], np.float32)
    view = np.array([50, 200, 0.5, 0.5, 37, 0])
    found = select(rows, np.array([0.5]), view, (100, 100))
    np.testing.assert_allclose(found[:, 2:], [[40, 0, 120, 50], [40, 0, 120, 26]], atol=1e-4)


def test_damaged_images_are_named(detector, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.jpg: not a sound image"):
        detector.detect([IMAGES[0], tmp_path / "bad.jpg"])
    with pytest.raises(DataError, match="image 1: not a sound image"):
        detector.detect([IMAGES[0], b"no image"])
    assert len(detector.detect(IMAGES[0]))


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="neither a model folder nor the prefix"):
        Detector(tmp_path / "none")
    with pytest.raises(OptionError, match="batch size 0"):
        Detector(tmp_path / "none", batch_size=0)


def test_figures_are_those_of_the_latest_values(monkeypatch):
    monkeypatch.setattr(detector_module, "WINDOW", 100)
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
