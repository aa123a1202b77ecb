"""A model folder whose model.onnx finds two boxes: their scores follow the mean and the first number of the input."""

import dataclasses
import hashlib
import shutil

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.preprocess import InputWriter
from model.manifest import MANIFEST, MANIFEST_FILE, ONNX, FileRecord, read_manifest

BOXES = np.array([[0, 0, 0.1, 0.2, 0.5, 0.6], [2, 0, 0.3, 0.3, 0.9, 1.0], [-1, 0, 0, 0, 0, 0]], np.float32)


def tiny_onnx(size, batch=1, data="data", det="det"):
    """det = BOXES with sigmoid(mean of data / 50) and sigmoid(first number of data / 100) as scores."""
    height, width = size
    places = np.zeros((2, 3, 6), np.float32)
    places[0, 0, 1] = places[1, 1, 1] = 1
    constants = {"boxes": BOXES[None], "mean_place": places[:1], "first_place": places[1:],
                 "fifty": np.float32(50), "hundred": np.float32(100), "zeros": np.zeros(3, np.int64),
                 "ones": np.ones(3, np.int64), "axes": np.array([1, 2, 3]), "shape": np.array([-1, 1, 1])}  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", [data, "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "fifty"], ["scaled"]),
        helper.make_node("Sigmoid", ["scaled"], ["score"]),
        helper.make_node("Reshape", ["score", "shape"], ["column"]),
        helper.make_node("Mul", ["column", "mean_place"], ["means"]),
        helper.make_node("Slice", [data, "zeros", "ones", "axes"], ["first"]),
        helper.make_node("Div", ["first", "hundred"], ["first_scaled"]),
        helper.make_node("Sigmoid", ["first_scaled"], ["first_score"]),
        helper.make_node("Reshape", ["first_score", "shape"], ["first_column"]),
        helper.make_node("Mul", ["first_column", "first_place"], ["firsts"]),
        helper.make_node("Add", ["means", "firsts"], ["scores"]),
        helper.make_node("Add", ["boxes", "scores"], [det]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(data, TensorProto.FLOAT, [batch, 3, height, width])],
        [helper.make_tensor_value_info(det, TensorProto.FLOAT, [batch, 3, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def with_onnx(folder, target, content=None, batch=1):
    """A copy of a model folder that has a model.onnx, too: `content`, or a tiny one."""
    shutil.copytree(folder, target)
    manifest = read_manifest(target)
    content = tiny_onnx(manifest.size, batch) if content is None else content
    (target / ONNX).write_bytes(content)
    record = FileRecord(len(content), hashlib.sha256(content).hexdigest())
    manifest = dataclasses.replace(manifest, files={**manifest.files, ONNX: record})
    (target / MANIFEST).write_text(MANIFEST_FILE.to_json(manifest), "utf-8")
    return target


def expected_rows(manifest, pixels):
    """What Detector should find in a picture (threshold 0), for resize mode force."""
    data = InputWriter(manifest).batch(1, 1)
    InputWriter(manifest).write(pixels, data[0])
    rows = BOXES[:2].copy()
    rows[:, 1] = 1 / (1 + np.exp(-np.array([data.mean() / 50, data[0, 0, 0, 0] / 100])))
    height, width = pixels.shape[:2]
    rows[:, 2:] *= [width, height, width, height]
    return rows[np.argsort(-rows[:, 1], kind="stable")]
