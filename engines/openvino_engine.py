"""A folder's model.onnx, or model-int8.onnx, in OpenVINO, on the CPU."""

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InstallError
from common.sizes import DATA, DET
from engines.batches import Shape, check_contract, run_in_batches
from engines.engine import OPENVINO
from machine.cpu import engine_threads
from model.folder_files import ONNX, ONNX_INT8, read_verified
from model.manifest import BFLOAT16, INT8, Manifest

# What is not int8 in the file of an int8 model. Without such a file, bfloat16 is nearer to float32 than int8 would be.
_PRECISIONS = {BFLOAT16: "bf16", INT8: "bf16"}


class OpenvinoEngine:
    """A compiled model; each thread has an infer request of its own, so that threads may run at the same time."""

    name = OPENVINO

    def __init__(self, folder: str | Path, manifest: Manifest, batch_size: int) -> None:
        """InstallError where OpenVINO cannot be loaded or does not run the file, CheckpointError for a wrong file."""
        name = ONNX_INT8 if ONNX_INT8 in manifest.files else ONNX
        origin = f"{folder}/{name}"
        core, model = _read(read_verified(folder, name, manifest), origin)
        inputs = _ports(model.inputs)
        check_contract(origin, manifest, inputs, _ports(model.outputs))
        self.manifest = manifest
        self._size = inputs[DATA][0] or batch_size
        shape = (self._size, *manifest.image_shape)
        self._model = _compile(core, model, shape, _PRECISIONS.get(manifest.dtype, "f32"), origin)
        self._requests = threading.local()

    def run(self, data: np.ndarray) -> np.ndarray:
        """Det (B, N, 6) of a batch."""
        return run_in_batches(self._run, data, self._size)

    def _run(self, data: np.ndarray) -> np.ndarray:
        if not hasattr(self._requests, "request"):
            self._requests.request = self._model.create_infer_request()
        return self._requests.request.infer({DATA: data}, share_inputs=True)[DET].copy()


def _read(content: bytes, origin: str) -> tuple[Any, Any]:
    """(OpenVINO's core, the model); InstallError if there can be none."""
    try:
        import openvino

        core = openvino.Core()
        return core, core.read_model(io.BytesIO(content))
    except Exception as error:  # plain RuntimeErrors
        raise InstallError(f"{origin}: openvino cannot run it ({error})") from error


def _compile(core: Any, model: Any, shape: tuple[int, ...], precision: str, origin: str) -> Any:
    """The model for inputs of a shape."""
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": engine_threads(),
        "INFERENCE_PRECISION_HINT": precision,
    }
    try:
        model.reshape({DATA: list(shape)})
        return core.compile_model(model, "CPU", settings)
    except Exception as error:  # plain RuntimeErrors
        raise InstallError(f"{origin}: openvino cannot run it ({error})") from error


def _ports(ports: list[Any]) -> dict[str, Shape]:
    """{name: shape}; None for a side that may have any number, () for a shape of any rank."""
    found: dict[str, Shape] = {}
    for port in ports:
        names, shape = port.get_names(), port.get_partial_shape()
        name = next((name for name in (DATA, DET) if name in names), min(names, default=""))
        sides = () if shape.rank.is_dynamic else shape
        found[name] = tuple(None if side.is_dynamic else side.get_length() for side in sides)
    return found
