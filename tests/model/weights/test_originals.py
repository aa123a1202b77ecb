"""Whole detectors beside the libraries that they come from: the same input, the same detections."""

import struct

import numpy as np
import pytest

from detect.detector import Detector
from engines.preprocess import InputWriter
from machine.opencv import cv2
from machine.runtime import mx
from symbol.backbone.gluon_body import model_zoo
from symbol.backbone.vgg import STAGES
from tests.dataset.layouts import with_table
from tests.model.weights.agreement import DOCUMENT, agreement_rows, record
from tests.model.weights.formula import caffemodel, counted, sized
from tools import convert_weights

SIDE = 300
# By how much weights are larger than those that keep the size of what flows through: of the heads, of the first layer.
GAINS = {
    "class": 2.0,
    "box": 0.5,
    "regression": 0.5,
    "mbox_conf": 2.0,
    "mbox_loc": 0.5,
    "stages.0.0.": 0.02,
    "features.0.": 0.02,
    "conv1_1": 0.02,
}


def picture(side=SIDE):
    """Pixels (side, side, 3) uint8 of noise in large and small blocks."""
    rng = np.random.default_rng(0)
    sides = ((n, -(-side // n)) for n in (1, 10, 50))
    blocks = [np.kron(rng.uniform(0, 255, (k, k, 3)), np.ones((n, n, 1)))[:side, :side] for n, k in sides]
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


def gluoncvs(name, side, path):
    """A detector of gluoncv with made-up weights, which are written to `path`."""
    block = model_zoo().get_model(name, pretrained=False, pretrained_base=False)
    block.infer_shape(mx.nd.zeros((1, 3, side, side)))
    block.initialize()
    rng = np.random.default_rng(0)
    for key, parameter in block._collect_params_with_prefix().items():
        if key.endswith(("weight", "bias")):
            parameter.set_data(mx.nd.array(made_up(key, parameter.shape, rng)))
    block.save_parameters(str(path))
    return block


def gluoncvs_rows(block, image):
    """What gluoncv finds, rows as of det in pixels, by its own preset of an input."""
    from gluoncv.data.transforms.presets.ssd import transform_test

    data, _ = transform_test(mx.nd.array(image, dtype="uint8"), len(image))
    rows = np.concatenate([out[0].asnumpy() for out in block(data)], axis=1)
    return rows[rows[:, 0] >= 0]


@pytest.mark.parametrize(
    ("name", "side"),
    [("ssd_300_vgg16_atrous_voc", 300), pytest.param("ssd_512_vgg16_atrous_coco", 512, marks=pytest.mark.slow)],
)
def test_gluoncvs_ssd_detects_as_in_gluoncv(name, side, tmp_path, capsys):
    block, prefix = gluoncvs(name, side, tmp_path / "ssd.params"), str(tmp_path / "ours")
    convert_weights.main(["--from", "gluon", str(tmp_path / "ssd.params"), "--prefix", prefix])
    assert "missing (0): none" in capsys.readouterr().out
    found = differences(rows_of(prefix, picture(side)), gluoncvs_rows(block, picture(side)), 50)
    record("gluon", name, "gluoncv", **found)
    assert found["pixels"] < 0.01
    assert found["score"] < 1e-4


CAFFE_MAPS = ("conv4_3_norm", "fc7", "conv6_2", "conv7_2", "conv8_2", "conv9_2")
CAFFE_EDGES = (30, 60, 111, 162, 213, 264, 315)
CAFFE_STEPS = (8, 16, 32, 64, 100, 300)
CLASSES = 4  # with background


class CaffeNet:
    """VGG_VOC0712_SSD_300x300's deploy.prototxt, and made-up weights of its layers."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.lines = [f'input: "data" input_shape {{ dim: 1 dim: 3 dim: {SIDE} dim: {SIDE} }}']
        self.arrays, self.channels = {}, {"data": 3}
        last = "data"
        for stage, (repeats, filters) in enumerate(STAGES, 1):
            for k in range(1, repeats + 1):
                last = self.conv(f"conv{stage}_{k}", last, filters, 3, pad=1)
            size = "kernel_size: 3 stride: 1 pad: 1" if stage == 5 else "kernel_size: 2 stride: 2"
            last = self.layer(f"pool{stage}", "Pooling", f"pooling_param {{ pool: MAX {size} }}", last)
        last = self.conv("fc7", self.conv("fc6", last, 1024, 3, pad=6, dilation=6), 1024, 1)
        for k, (filters, pad, stride) in enumerate(((512, 1, 2), (256, 1, 2), (256, 0, 1), (256, 0, 1)), 6):
            last = self.conv(f"conv{k}_1", last, filters // 2, 1)
            last = self.conv(f"conv{k}_2", last, filters, 3, pad=pad, stride=stride)
        self.layer("conv4_3_norm", "Normalize", "norm_param { across_spatial: false channel_shared: false }", "conv4_3")
        self.arrays["conv4_3_norm"] = [np.full(512, 20, np.float32)]
        self.heads()

    def layer(self, name, kind, text, *bottoms):
        words = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
        self.lines.append(f'layer {{ name: "{name}" type: "{kind}" {words} top: "{name}" {text} }}')
        self.channels[name] = self.channels.get(bottoms[0], 0)
        return name

    def conv(self, name, bottom, filters, size, relu=True, **more):
        words = {"num_output": filters, "kernel_size": size} | more
        text = " ".join(f"{key}: {value}" for key, value in words.items())
        shape = (filters, self.channels[bottom], size, size)
        self.layer(name, "Convolution", f"convolution_param {{ {text} }}", bottom)
        self.arrays[name] = [made_up(name, part, self.rng).astype(np.float32) for part in (shape, shape[:1])]
        self.channels[name] = filters
        if relu:
            self.lines.append(f'layer {{ name: "{name}_relu" type: "ReLU" bottom: "{name}" top: "{name}" }}')
        return name

    def heads(self):
        """Per map: offsets, scores and priors; then their concatenations and DetectionOutput."""
        parts = {"mbox_loc": [], "mbox_conf": [], "mbox_priorbox": []}
        for k, name in enumerate(CAFFE_MAPS):
            ratios = (2, 3) if 0 < k < 4 else (2,)
            for head, values in (("mbox_loc", 4), ("mbox_conf", CLASSES)):
                conv = self.conv(f"{name}_{head}", name, values * (2 + 2 * len(ratios)), 3, relu=False, pad=1)
                perm = self.layer(
                    f"{conv}_perm", "Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }", conv
                )
                parts[head].append(self.layer(f"{conv}_flat", "Flatten", "flatten_param { axis: 1 }", perm))
            low, high = CAFFE_EDGES[k : k + 2]
            text = f"min_size: {low} max_size: {high} {' '.join(f'aspect_ratio: {ratio}' for ratio in ratios)}"
            text += f" flip: true clip: false variance: [0.1, 0.1, 0.2, 0.2] step: {CAFFE_STEPS[k]}"
            parts["mbox_priorbox"].append(
                self.layer(
                    f"{name}_mbox_priorbox", "PriorBox", f"prior_box_param {{ {text} offset: 0.5 }}", name, "data"
                )
            )
        loc, conf, prior = (
            self.layer(name, "Concat", f"concat_param {{ axis: {2 if 'prior' in name else 1} }}", *all_)
            for name, all_ in parts.items()
        )
        conf = self.layer("reshape", "Reshape", f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {CLASSES} }} }}", conf)
        conf = self.layer("softmax", "Softmax", "softmax_param { axis: 2 }", conf)
        conf = self.layer("flat", "Flatten", "flatten_param { axis: 1 }", conf)
        text = f"num_classes: {CLASSES} share_location: true background_label_id: 0 code_type: CENTER_SIZE"
        text += " nms_param { nms_threshold: 0.45 top_k: 400 } keep_top_k: 200 confidence_threshold: 0.01"
        self.layer("detection_out", "DetectionOutput", f"detection_output_param {{ {text} }}", loc, conf, prior)

    def caffemodel(self):
        """The weights, and the priors as training writes them beside these."""
        content = caffemodel(self.arrays)
        for k, name in enumerate(CAFFE_MAPS):
            sizes = [struct.pack("<Bf", number << 3 | 5, edge) for number, edge in enumerate(CAFFE_EDGES[k : k + 2], 1)]
            ratios = [struct.pack("<Bf", 3 << 3 | 5, ratio) for ratio in ((2, 3) if 0 < k < 4 else (2,))]
            prior = b"".join(sizes + ratios) + counted(4, 1) + struct.pack("<Bf", 10 << 3 | 5, CAFFE_STEPS[k])
            content += sized(100, sized(1, f"{name}_mbox_priorbox".encode()) + sized(203, prior))
        return content


def test_caffes_ssd_detects_as_in_opencv(tmp_path, capsys):
    net, model = CaffeNet(), tmp_path / "ssd.caffemodel"
    (tmp_path / "deploy.prototxt").write_text("\n".join(net.lines))
    model.write_bytes(net.caffemodel())
    prefix = str(tmp_path / "ours")
    convert_weights.main(["--from", "caffe", str(model), "--prefix", prefix])
    assert "missing (0): none\nunused (0): none" in capsys.readouterr().out
    opencvs = cv2.dnn.readNetFromCaffe(str(tmp_path / "deploy.prototxt"), str(model))
    opencvs.setInput(cv2.dnn.blobFromImage(picture()[..., ::-1].copy(), mean=(104, 117, 123)))  # BGR
    want = opencvs.forward()[0, 0][:, 1:]
    want = (want - (1, 0, 0, 0, 0, 0)) * (1, 1, *(SIDE,) * 4)
    measured = differences(rows_of(prefix, picture()), want, 50)
    record("caffe", "VGG_VOC0712_SSD_300x300", "OpenCV", **measured)
    assert measured["pixels"] < 0.01
    assert measured["score"] < 1e-4


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


def test_the_document_has_the_table_of_agreements():
    text = DOCUMENT.read_text("utf-8")
    assert text == with_table(text, "agreement", agreement_rows()), "run python -m tests.model.weights.agreement"
