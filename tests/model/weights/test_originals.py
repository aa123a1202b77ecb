"""Whole detectors beside the libraries that they come from: the same input, the same detections."""

import numpy as np
import pytest

from detect.detector import Detector
from engines.preprocess import InputWriter
from machine.runtime import mx
from tests.model.weights.agreement import record
from tools import convert_weights

SIDE = 300
# By how much weights are larger than those that keep the size of what flows through: of the heads, of the first layer.
GAINS = {"class": 2.0, "box": 0.5, "regression": 0.5, "stages.0.0.": 0.02, "features.0.": 0.02}


def picture(side=SIDE):
    """Pixels (side, side, 3) uint8 of noise in large and small blocks."""
    rng = np.random.default_rng(0)
    blocks = [np.kron(rng.uniform(0, 255, (side // n, side // n, 3)), np.ones((n, n, 1))) for n in (1, 10, 50)]
    return np.mean(blocks, axis=0).astype(np.uint8)


def made_up(name, shape, rng):
    """Weights that keep the size of what flows through a network, larger ones of the heads, and biases."""
    if len(shape) < 2:
        return rng.normal(0, 0.1, shape)
    gain = next((gain for word, gain in GAINS.items() if word in name), 1.0)
    return rng.normal(0, gain * np.sqrt(2 / np.prod(shape[1:])), shape)


def rows_of(prefix, image):
    """det rows [id, score, corners in pixels] of a checkpoint, as demo.py makes its input."""
    detector = Detector(prefix, 0, ctx=mx.cpu())
    writer = InputWriter(detector.manifest)
    data = writer.batch(1, 1)
    writer.write(image, data[0])
    rows = detector._engine.run(data)[0]
    rows = rows[rows[:, 0] >= 0]
    return rows * np.array([1, 1, *detector.manifest.size[::-1] * 2], np.float32)


def differences(got, want, least):
    """The largest differences of two lists of the same rows, at least so many, which have the same order but for scores
    that rounding exchanges."""
    assert len(got) == len(want) >= least
    got, want = (rows[np.lexsort((*rows[:, 2:].round().T, rows[:, 0], -rows[:, 1].round(4)))] for rows in (got, want))
    assert np.array_equal(got[:, 0], want[:, 0])
    return {"pixels": abs(got[:, 2:] - want[:, 2:]).max(), "score": abs(got[:, 1] - want[:, 1]).max()}


@pytest.fixture(scope="module")
def gluoncvs(tmp_path_factory):
    """gluoncv's SSD300 with VGG16 and its file."""
    from gluoncv.model_zoo import get_model

    block = get_model("ssd_300_vgg16_atrous_voc", pretrained=False, pretrained_base=False)
    block.infer_shape(mx.nd.zeros((1, 3, SIDE, SIDE)))
    block.initialize()
    rng = np.random.default_rng(0)
    for name, parameter in block._collect_params_with_prefix().items():
        if name.endswith(("weight", "bias")):
            parameter.set_data(mx.nd.array(made_up(name, parameter.shape, rng)))
    path = tmp_path_factory.mktemp("gluoncv") / "ssd.params"
    block.save_parameters(str(path))
    return block, path


def gluoncvs_rows(block, image):
    """What gluoncv finds, rows as of det in pixels, by its own preset of an input."""
    from gluoncv.data.transforms.presets.ssd import transform_test

    data, _ = transform_test(mx.nd.array(image, dtype="uint8"), len(image))
    rows = np.concatenate([out[0].asnumpy() for out in block(data)], axis=1)
    return rows[rows[:, 0] >= 0]


def test_gluoncvs_ssd_detects_as_in_gluoncv(gluoncvs, capsys):
    block, path = gluoncvs
    prefix = str(path.with_name("ours"))
    convert_weights.main(["--from", "gluon", str(path), "--prefix", prefix])
    assert "missing (0): none" in capsys.readouterr().out
    found = differences(rows_of(prefix, picture()), gluoncvs_rows(block, picture()), 50)
    record("gluon", "ssd_300_vgg16_atrous_voc", "gluoncv", **found)
    assert found["pixels"] < 0.01
    assert found["score"] < 1e-4


@pytest.mark.slow
def test_torchvisions_ssd_detects_as_in_torchvision(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    detection = pytest.importorskip("torchvision.models.detection")
    network = detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=6).eval()
    rng = np.random.default_rng(0)
    state = {
        name: torch.from_numpy(made_up(name, tuple(array.shape), rng).astype(np.float32))
        for name, array in network.state_dict().items()
        if name.endswith(("weight", "bias")) and "scale" not in name
    }
    network.load_state_dict(state, strict=False)
    torch.save(network.state_dict(), tmp_path / "ssd.pth")
    convert_weights.main(["--from", "torchvision", str(tmp_path / "ssd.pth"), "--prefix", str(tmp_path / "ours")])
    assert "missing (0): none\nunused (0): none" in capsys.readouterr().out
    with torch.no_grad():
        found = network([torch.from_numpy(picture().transpose(2, 0, 1) / np.float32(255))])[0]
    columns = (found["labels"][:, None] - 1, found["scores"][:, None], found["boxes"])
    want = np.concatenate([column.numpy() for column in columns], axis=1, dtype=np.float32)
    measured = differences(rows_of(str(tmp_path / "ours"), picture()), want, 50)
    record("torchvision", "ssd300_vgg16", "torchvision", **measured)
    assert measured["pixels"] < 0.01
    assert measured["score"] < 1e-4
