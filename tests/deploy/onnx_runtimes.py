"""Runs ONNX models, and the symbols that they come from."""

import io

import numpy as np
import pytest

from machine.runtime import mx

onnx = pytest.importorskip("onnx")
from deploy.onnx_export.export import to_onnx  # noqa: E402

RUNTIMES = ("onnxruntime", "openvino")


def run(runtime, model, data):
    """The output of a model (ModelProto) in a runtime; skips the test where that is not installed."""
    package = pytest.importorskip(runtime)
    content = model.SerializeToString()
    if runtime == "onnxruntime":
        options = package.SessionOptions()
        options.intra_op_num_threads = 1
        session = package.InferenceSession(content, options, ["CPUExecutionProvider"])
        return session.run(["det"], {"data": data})[0]
    core = package.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(io.BytesIO(content)), "CPU", settings)
    return compiled({"data": data})["det"]


def run_mxnet(symbol, params, data):
    """The output of a symbol."""
    types = {"data": data.dtype.name}
    executor = symbol.simple_bind(mx.cpu(), grad_req="null", type_dict=types, data=data.shape)
    for name, array in {**executor.arg_dict, **executor.aux_dict}.items():
        if name != "data":
            array[:] = params[name]
    executor.arg_dict["data"][:] = data
    return executor.forward(is_train=False)[0].asnumpy()


def random_params(symbol, shape, seed=0):
    """Small random numbers for everything that the symbol reads but data; variances are positive."""
    rng = np.random.default_rng(seed)
    arg_shapes, _, aux_shapes = symbol.infer_shape(data=shape)
    names = symbol.list_arguments() + symbol.list_auxiliary_states()
    shapes = dict(zip(names, [*arg_shapes, *aux_shapes], strict=True))
    return {
        name: mx.nd.array(rng.uniform(0.5, 1.5, side) if "var" in name or "gamma" in name else rng.normal(0, 0.3, side))
        for name, side in shapes.items()
        if name != "data"
    }


def exported(symbol, params, data, num_classes=1, batch=0):
    """The checked ONNX model of a symbol that reads data of this type and shape."""
    model = to_onnx(symbol, params, data.shape[1:], num_classes, batch=batch, input_type=data.dtype.type)
    onnx.checker.check_model(model, full_check=True)
    return model
