"""Darknet's networks beside OpenCV's dnn, which reads the same files: predictions, and detections of real weights."""

import re

import numpy as np
import pytest

from boxes.nms import nms
from common.errors import DataError
from deploy.main import main as deploy
from detect.detector import Detector
from engines.preprocess import InputWriter, read_image
from machine.opencv import cv2
from machine.runtime import mx
from model.weights import darknet
from symbol.darknet_cfg import load_cfg, parse_cfg
from symbol.darknet_sections import Yolo, trace
from symbol.detector.yolo import YOLORow, decode, levels
from symbol.network_options import YOLOOptions
from tests.model.weights.agreement import record
from tests.model.weights.formula import outputs
from tools import convert_weights

CELLS = (2, 3)  # of the coarsest map
# A section of every form: groups, depthwise, all activations, pooling of all kinds, parts of maps, partial sums.
ALL_FORMS = """\
[net]
width=96
height=64
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=mish

[convolutional]
batch_normalize=1
filters=8
size=3
groups=8
pad=1
activation=relu6

[convolutional]
filters=12
size=1
activation=swish

[dropout]
probability=.2

[convolutional]
batch_normalize=1
filters=8
size=3
groups=4
pad=1
activation=relu

[shortcut]
from=-3
activation=leaky

[maxpool]
size=2
stride=2

[route]
layers=-1
groups=2
group_id=1

[maxpool]
size=2
stride=1

[maxpool]
size=5
stride=1

[route]
layers=-1,-2,-3

[avgpool]

[convolutional]
filters=12
size=1
stride=1
activation=logistic

[scale_channels]
from=-3

[convolutional]
filters=12
size=1
activation=logistic

[sam]
from=-2

[maxpool]
size=3
stride=2

[convolutional]
filters=12
size=1
activation=leaky

[shortcut]
from=-2
activation=linear

[convolutional]
filters=14
size=1
activation=linear

[yolo]
mask=0,1
anchors=10,14, 23,27, 37.5,58
classes=2
num=3
scale_x_y=1.2

[route]
layers=-3

[upsample]
stride=2

[convolutional]
filters=7
size=1
activation=logistic

[yolo]
mask=2
anchors=10,14, 23,27, 37.5,58
classes=2
num=3
scale_x_y=2
new_coords=1
"""
BUILT = (
    *("yolov4", "yolov4-tiny", "yolov4-tiny-3l", "yolov4-custom", "yolov4-csp", "yolov4x-mish", "yolov3-tiny-prn"),
    *("enet-coco", "csresnext50-panet-spp", "cspx-p7-mish", "yolov3_5l", "yolov3-openimages"),
    *("yolov3-voc.yolov3-giou-40", "yolov3.coco-giou-12", "yolov3-tiny_3l", "yolov3-spp", "cd53paspp-gamma"),
)
REFUSED = {
    "yolov2": r"\[reorg\]: not built",
    "yolov2-tiny": r"\[region\]: not built",
    "yolov3-tiny_xnor": "'xnor' is not built",
    "Gaussian_yolov3_BDD": r"\[gaussian_yolo\]: not built",
    "yolov4-tiny_contrastive": "'contrastive' is not built",
}


def made_up(sections):
    """Weights that keep the size of what flows through a network, however deep: by a generator, as sines resonate."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in darknet.file_order(sections):
        if name.endswith("_conv_weight"):
            values = rng.normal(0, np.sqrt(0.3 / np.prod(shape[1:])), shape)
        elif name.endswith(("gamma", "var")):
            values = rng.uniform(0.8, 1.2, shape)
        else:
            values = rng.normal(0, 0.1, shape)
        arrays[name] = values.astype(np.float32)
    return arrays


def predictions(sections, arrays, data):
    """[(height * width * anchors, 5 + classes)] of our networks, in OpenCV's order and units."""
    size, classes = data.shape[2:], next(s.classes for s in sections if isinstance(s, Yolo))
    maps = levels("yolov3", YOLORow(sections), size, classes, YOLOOptions(batch_norm_eps=1e-6))
    found = outputs(mx.sym.Group([decode(level) for level in maps]), arrays, arrays, data)
    rows = []
    for level, array in zip(maps, found if isinstance(found, list) else [found], strict=True):
        array = array.reshape(len(level.anchors), size[0] // level.stride, size[1] // level.stride, -1)
        array = array.transpose(1, 2, 0, 3).reshape(-1, 5 + classes)
        array[:, :4] /= (size[1], size[0], size[1], size[0])
        array[:, 5:] *= array[:, 4:5]
        rows.append(array)
    return rows


def opencvs(folder, text, sections, arrays, data):
    """The same of OpenCV."""
    height, width = data.shape[2:]
    for key, side in (("width", width), ("height", height)):
        text = re.sub(rf"(?m)^\s*{key}\s*=.*", f"{key}={side}", text)
    (folder / "a.cfg").write_text(text.replace("relu6", "relu"))  # which it does not have; nothing reaches 6 here
    darknet.write(folder / "a.weights", sections, arrays, seen=0)
    net = cv2.dnn.readNetFromDarknet(str(folder / "a.cfg"), str(folder / "a.weights"))
    net.setInput(data)
    return net.forward(net.getUnconnectedOutLayersNames())


def assert_equal_predictions(folder, text):
    sections = parse_cfg(text, "here")
    arrays = made_up(sections)
    stride = max(extent.stride for extent in trace(sections))
    data = np.random.default_rng(1).random((1, 3, *(stride * n for n in CELLS)), np.float32)
    ours, theirs = predictions(sections, arrays, data), opencvs(folder, text, sections, arrays, data)
    assert sorted(map(len, ours)) == sorted(map(len, theirs))
    largest = 0.0
    for want in theirs:
        got = next(rows for rows in ours if len(rows) == len(want))
        kept = want[:, 5:] > 0  # OpenCV drops low scores
        assert kept.any()
        np.testing.assert_allclose(got[:, :5], want[:, :5], rtol=1e-3, atol=5e-5)
        np.testing.assert_allclose(got[:, 5:][kept], want[:, 5:][kept], atol=5e-5)
        largest = max(largest, abs(got[:, 5:][kept] - want[:, 5:][kept]).max())
    return largest


def test_every_form_of_section_is_opencvs(tmp_path):
    record(
        "darknet", "a .cfg with every form of section", "OpenCV", score=assert_equal_predictions(tmp_path, ALL_FORMS)
    )


@pytest.mark.parametrize("name", BUILT)
def test_darknets_own_networks_are_opencvs(name, tmp_path, data_dir):
    text = load_cfg(data_dir / "darknet" / "cfg" / f"{name}.cfg")
    if name == "cspx-p7-mish":  # has 20 anchors, which OpenCV asks for
        text = text.replace("num=16", "num=20")
    assert_equal_predictions(tmp_path, text)


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_darknets_other_networks_are_refused_by_name(name, message, data_dir):
    path = data_dir / "darknet" / "cfg" / f"{name}.cfg"
    with pytest.raises(DataError, match=message):
        parse_cfg(load_cfg(path), path.name)


@pytest.fixture(scope="module")
def fastest(tmp_path_factory, data_dir):
    """A model folder of yolo-fastest-1.1, with model.onnx."""
    files, out = data_dir / "darknet", tmp_path_factory.mktemp("fastest")
    name = files / "yolo-fastest-1.1"
    words = ["--network", f"darknet:{name}.cfg", "--class-names", str(files / "coco.names"), "--prefix", f"{out}/yf"]
    convert_weights.main(["--from", "darknet", f"{name}.weights", *words])
    deploy(["--prefix", f"{out}/yf", "--epoch", "0", "--output", f"{out}/model", "--onnx"])
    return out / "model"


def opencvs_detections(files, data, size, threshold):
    """Rows [id, score, corners in pixels], best first, of OpenCV's network and the rule of Darknet's do_nms_sort."""
    height, width = size
    name = files / "yolo-fastest-1.1"
    net = cv2.dnn.readNetFromDarknet(f"{name}.cfg", f"{name}.weights")
    net.setInput(data)
    rows = np.concatenate(net.forward(net.getUnconnectedOutLayersNames()))
    centres, sides = rows[:, :2] * (width, height), rows[:, 2:4] * (width, height)
    corners = np.hstack([centres - sides / 2, centres + sides / 2])
    found = []
    for number, scores in enumerate(rows[:, 5:].T):
        kept = np.flatnonzero(scores > threshold)
        kept = kept[nms(corners[kept], scores[kept], 0.45)]
        found += [(number, scores[k], *corners[k]) for k in kept]
    return np.array(sorted(found, key=lambda row: -row[1]))


@pytest.mark.parametrize("engine", ["mxnet", "onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("name", "things"),
    [("dog", {"dog", "bicycle", "car"}), ("giraffe", {"giraffe", "zebra"}), ("person", {"person"})],
)
def test_trained_weights_detect_as_in_opencv(name, things, engine, fastest, data_dir):
    pytest.importorskip({"mxnet": "mxnet"}.get(engine, engine))
    detector = Detector(fastest, engine=engine, threshold=0.3)
    image = read_image(data_dir / "darknet" / f"{name}.jpg", name)
    got = detector.detect(image)
    writer = InputWriter(detector.manifest)
    data = writer.batch(1, 1)
    writer.write(image, data[0])
    height, width = data.shape[2:]
    want = opencvs_detections(data_dir / "darknet", data, image.shape[:2], 0.3)
    want[:, 2:] = np.clip(want[:, 2:], 0, np.tile(image.shape[1::-1], 2))
    assert len(got) == len(want)
    assert np.array_equal(got[:, 0], want[:, 0])
    np.testing.assert_allclose(got[:, 1], want[:, 1], atol=1e-4)
    scale = np.tile(np.array(image.shape[1::-1]) / (width, height), 2)
    np.testing.assert_allclose(got[:, 2:] / scale, want[:, 2:] / scale, atol=0.05)
    differences = {"pixels": abs(got[:, 2:] - want[:, 2:]) / scale, "score": abs(got[:, 1] - want[:, 1])}
    record("darknet", "yolo-fastest-1.1, trained", "OpenCV", **{unit: x.max() for unit, x in differences.items()})
    assert things <= {detector.class_names[int(row[0])] for row in got}
