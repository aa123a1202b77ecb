"""What benchmarks.inference compares: each runs one network, at one precision, from the files of inference_files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detect.detector import Detector, StepStatistics, class_thresholds, select
from engines.engine import AUTO, ENGINES, MXNET, ONNXRUNTIME, OPENVINO, EngineRequest
from engines.preprocess import InputWriter, read_image
from machine.cpu import engine_threads
from model.manifest import ONNX, read_manifest

FLOAT32, BFLOAT16, INT8 = PRECISIONS = ("float32", "bfloat16", "int8")
TORCH, CHANNELS_LAST = "torch", "torch channels-last"
ORT_INT8, OPENVINO_INT8 = "onnxruntime-int8.onnx", "openvino-int8.xml"
TORCH_SYMBOL, TORCH_PARAMS = "torch-symbol.json", "torch-params.npz"
DETECTOR = "Detector "  # before the names of what runs from JPEG bytes to boxes in our Detector
THRESHOLD = 0.05

Run = Callable[[np.ndarray], Any]
Detect = Callable[[list[bytes]], Any]


@dataclass(frozen=True)
class Candidate:
    """A library, or Detector with an engine, and a precision."""

    library: str
    precision: str

    @property
    def name(self) -> str:
        """For tables and on the command line."""
        return f"{self.library} {self.precision}"

    @property
    def engine(self) -> str:
        """The library without DETECTOR."""
        return self.library.removeprefix(DETECTOR)


NETWORK_CANDIDATES = (
    *(Candidate(MXNET, precision) for precision in PRECISIONS),
    *(Candidate(ONNXRUNTIME, precision) for precision in (FLOAT32, INT8)),
    *(Candidate(OPENVINO, precision) for precision in PRECISIONS),
    *(Candidate(library, FLOAT32) for library in (TORCH, CHANNELS_LAST)),
)
END_TO_END_CANDIDATES = (
    *(Candidate(DETECTOR + engine, precision) for engine in (AUTO, MXNET) for precision in PRECISIONS),
    Candidate(DETECTOR + ONNXRUNTIME, FLOAT32),
    Candidate(DETECTOR + OPENVINO, FLOAT32),
    *(Candidate(DETECTOR + OPENVINO, precision) for precision in (BFLOAT16, INT8)),
    Candidate(ONNXRUNTIME, INT8),
    Candidate(OPENVINO, INT8),
    *(Candidate(library, FLOAT32) for library in (TORCH, CHANNELS_LAST)),
)


def open_network(candidate: Candidate, folder: Path, batch: int) -> Run:
    """What runs the network: float32 (B, 3, H, W) -> det, with PyTorch the raw predictions."""
    if candidate.library == MXNET:
        from engines.mxnet_engine import MxnetEngine

        return MxnetEngine(EngineRequest(folder / candidate.precision, batch_size=batch)).run
    if candidate.library == ONNXRUNTIME:
        return _onnxruntime(folder / (ORT_INT8 if candidate.precision == INT8 else f"{FLOAT32}/{ONNX}"))
    if candidate.library == OPENVINO:
        return _openvino(folder, candidate.precision, batch)
    return _torch(folder, candidate.library)


def _onnxruntime(path: Path) -> Run:
    """Default settings but for the number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = engine_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda data: session.run(["det"], {"data": data})[0]


def _openvino(folder: Path, precision: str, batch: int) -> Run:
    """For latency, at a fixed batch; int8 leaves the precision of other layers to OpenVINO, which takes the fastest."""
    import openvino

    core = openvino.Core()
    model = core.read_model(folder / (OPENVINO_INT8 if precision == INT8 else f"{FLOAT32}/{ONNX}"))
    model.reshape({0: [batch, *list(model.inputs[0].get_partial_shape())[1:]]})
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": engine_threads()}
    if precision != INT8:
        settings["INFERENCE_PRECISION_HINT"] = {FLOAT32: "f32", BFLOAT16: "bf16"}[precision]
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda data: request.infer({"data": data}, share_inputs=True)["det"].copy()


def _torch(folder: Path, library: str) -> Run:
    """Eager, the network alone."""
    import torch

    from benchmarks.torch_symbol import TorchSymbol

    torch.set_num_threads(engine_threads())
    memory_format = torch.channels_last if library == CHANNELS_LAST else torch.contiguous_format
    with np.load(folder / TORCH_PARAMS) as params:
        return TorchSymbol((folder / TORCH_SYMBOL).read_text("utf-8"), dict(params), memory_format)


class Pipeline:
    """Images to boxes in pixels by Detector's own pre- and post-processing around another engine."""

    def __init__(self, candidate: Candidate, folder: Path, batch: int) -> None:
        """PyTorch's raw predictions end the way there: they are neither decoded nor suppressed."""
        self._run, self._batch = open_network(candidate, folder, batch), batch
        self._manifest = read_manifest(folder / FLOAT32)
        self._writer = InputWriter(self._manifest)
        self._thresholds = class_thresholds(THRESHOLD, self._manifest.class_names)
        self._has_det = candidate.library in ENGINES

    def detect(self, images: list[bytes]) -> list[np.ndarray]:
        """The detections of up to a batch of encoded images."""
        data = self._writer.batch(len(images), self._batch)
        views = [
            self._writer.write(read_image(image, f"image {number}"), row)
            for number, (image, row) in enumerate(zip(images, data, strict=False))
        ]
        det = self._run(data)
        if not self._has_det:
            return []
        size = self._manifest.size
        return [select(rows, self._thresholds, view, size) for rows, view in zip(det, views, strict=False)]


def open_end_to_end(candidate: Candidate, folder: Path, batch: int) -> tuple[Detect, str, Callable[[], dict[str, Any]]]:
    """(what turns encoded images into boxes, its engine's name, the median seconds of Detector's steps)."""
    if not candidate.library.startswith(DETECTOR):
        return Pipeline(candidate, folder, batch).detect, candidate.library, dict
    detector = Detector(folder / candidate.precision, engine=candidate.engine, batch_size=batch, threshold=THRESHOLD)
    return detector.detect, detector.engine, lambda: _per_batch(detector.statistics(), batch)


def _per_batch(statistics: dict[str, StepStatistics], batch: int) -> dict[str, float]:
    """Seconds that each step takes of a batch, medians."""
    network = min(step.count for step in statistics.values())
    return {name: step.median * round(step.count / network) for name, step in statistics.items()}
