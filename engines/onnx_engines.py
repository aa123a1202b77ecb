"""A folder's model.onnx in ONNX Runtime, and the same file or model-int8.onnx in OpenVINO, on the CPU.

A file is looked through before any runtime sees it, without the package onnx: a runtime would read whatever file a
model names. The numbers of the fields: onnx.proto.
"""

import hashlib
import io
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import CheckpointError, InstallError
from common.protobuf import BYTES, fields
from common.sizes import DATA, DET
from engines.engine import ONNXRUNTIME, OPENVINO
from machine.cpu import engine_threads
from model.manifest import BFLOAT16, INT8, ONNX, ONNX_INT8, Manifest, check_size, damaged

ROW = 6  # numbers of a detection
PortShape = Sequence[int | None]
# Message -> field number -> message in it; what leads to tensors.
MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
# What is not int8 in the file of an int8 model. Without such a file, bfloat16 is nearer to float32 than int8 would be.
_PRECISIONS = {BFLOAT16: "bf16", INT8: "bf16"}


def check_contract(
    origin: str, manifest: Manifest, inputs: Mapping[str, PortShape], outputs: Mapping[str, PortShape]
) -> None:
    """CheckpointError unless the file reads `data` and gives `det` as the manifest has them; None: any number."""
    data, det = inputs.get(DATA, ()), outputs.get(DET, ())
    fits = len(inputs) == 1 and _fits(data, (None, *manifest.image_shape)) and _fits(det, (None, None, ROW))
    if not fits:
        raise CheckpointError(
            f"{origin}: reads {_text(inputs)} and gives {_text(outputs)}, not {DATA} (B, "
            f"{', '.join(map(str, manifest.image_shape))}) and {DET} (B, N, {ROW}); export the model again"
        )


def run_in_batches(run: Callable[[np.ndarray], np.ndarray], data: np.ndarray, size: int | None) -> np.ndarray:
    """run(data) by a network that takes `size` images at a time, None = any number; the last batch is filled up."""
    if size is None or len(data) == size:
        return run(data)
    parts = [data[begin : begin + size] for begin in range(0, len(data), size)]
    missing = size - len(parts[-1])
    if missing:
        parts[-1] = np.concatenate([parts[-1], np.zeros((missing, *data.shape[1:]), data.dtype)])
    return np.concatenate([run(part) for part in parts])[: len(data)]


def _fits(found: PortShape, wanted: PortShape) -> bool:
    """Whether a shape has the wanted sides; None on either side fits any number."""
    if len(found) != len(wanted):
        return False
    return all(None in (side, other) or side == other for side, other in zip(found, wanted, strict=True))


def _text(ports: Mapping[str, PortShape]) -> str:
    return ", ".join(f"{name:.50} {tuple(shape)}" for name, shape in ports.items()) or "nothing"


def check_self_contained(content: bytes) -> None:
    """ValueError for an ONNX file that is no protobuf message, or whose tensors lie in other files."""
    waiting = [("model", memoryview(content))]
    while waiting:
        message, view = waiting.pop()
        for number, kind, inside in fields(view):
            inner = MESSAGES[message].get(number)
            if inner and kind == BYTES:
                waiting.append((inner, inside))
            elif message == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and any(inside))):
                raise ValueError("it takes numbers from other files")


def read_onnx(folder: str | Path, name: str, manifest: Manifest) -> bytes:
    """The bytes of an ONNX file of a model folder; CheckpointError unless they are those that the manifest describes.

    It must not name further files, as a runtime would read those.
    """
    path, record = Path(folder, name), manifest.files[name]
    check_size(path, record)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise damaged(path)
    _check_onnx(path, content)
    return content


def _check_onnx(path: Path, content: bytes) -> None:
    try:
        check_self_contained(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a model that can be run ({error}); export it again with --onnx") from error


class OnnxEngine:
    """A session, which any number of threads may use at the same time."""

    name = ONNXRUNTIME

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        """InstallError where ONNX Runtime cannot be loaded or run the file, CheckpointError for a wrong file."""
        origin = f"{folder}/{ONNX}"
        self._session = _open_session(read_onnx(folder, ONNX, manifest), origin)
        inputs, outputs = _session_ports(self._session.get_inputs()), _session_ports(self._session.get_outputs())
        check_contract(origin, manifest, inputs, outputs)
        self.manifest = manifest
        self._size = inputs[DATA][0]

    def run(self, data: np.ndarray) -> np.ndarray:
        """Det (B, N, 6) of a batch."""
        return run_in_batches(self._run, data, self._size)

    def _run(self, data: np.ndarray) -> np.ndarray:
        return self._session.run([DET], {DATA: data})[0]


def _open_session(content: bytes, origin: str) -> Any:
    """The session of a model; InstallError if there can be none."""
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = engine_threads()
        options.log_severity_level = 3  # errors
        # Threads that wait at full speed after a run would keep the cores from pre-processing and other engines.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no base class of their own
        raise InstallError(f"{origin}: onnxruntime cannot run it ({error})") from error


def _session_ports(arguments: list[Any]) -> dict[str, PortShape]:
    """{name: shape}; a side is a number, or a name or nothing for any number."""
    return {a.name: tuple(side if isinstance(side, int) else None for side in a.shape or ()) for a in arguments}


class OpenvinoEngine:
    """A compiled model; each thread has an infer request of its own, so that threads may run at the same time."""

    name = OPENVINO

    def __init__(self, folder: str | Path, manifest: Manifest, batch_size: int) -> None:
        """InstallError where OpenVINO cannot be loaded or does not run the file, CheckpointError for a wrong file."""
        name = ONNX_INT8 if ONNX_INT8 in manifest.files else ONNX
        origin = f"{folder}/{name}"
        core, model = _openvino_model(read_onnx(folder, name, manifest), origin)
        inputs = _openvino_ports(model.inputs)
        check_contract(origin, manifest, inputs, _openvino_ports(model.outputs))
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


def _openvino_model(content: bytes, origin: str) -> tuple[Any, Any]:
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


def _openvino_ports(ports: list[Any]) -> dict[str, PortShape]:
    """{name: shape}; None for a side that may have any number, () for a shape of any rank."""
    found: dict[str, PortShape] = {}
    for port in ports:
        names, shape = port.get_names(), port.get_partial_shape()
        name = next((name for name in (DATA, DET) if name in names), min(names, default=""))
        sides = () if shape.rank.is_dynamic else shape
        found[name] = tuple(None if side.is_dynamic else side.get_length() for side in sides)
    return found
