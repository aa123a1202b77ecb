"""A folder's model.onnx in OpenVINO, on the CPU."""

import io
import threading
from pathlib import Path

import numpy as np

from config.errors import InstallError
from config.threads import engine_threads
from deploy.folder_files import ONNX, read_verified
from deploy.manifest import BFLOAT16, Manifest
from detect.batches import run_in_batches
from detect.engine import OPENVINO

_PRECISIONS = {BFLOAT16: "bf16"}  # the file is float32; by itself OpenVINO takes bfloat16 wherever that is fast


class OpenvinoEngine:
    """A compiled model; each thread has an infer request of its own, so that threads may run at the same time."""

    name = OPENVINO

    def __init__(self, folder: str | Path, manifest: Manifest, batch_size: int) -> None:
        """InstallError where OpenVINO cannot be loaded or does not run the file."""
        content = read_verified(folder, ONNX, manifest)
        try:
            import openvino

            core = openvino.Core()
            model = core.read_model(io.BytesIO(content))
            size = model.inputs[0].get_partial_shape()[0]
            if size.is_dynamic:
                model.reshape({0: [batch_size, *list(model.inputs[0].get_partial_shape())[1:]]})
            settings = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": engine_threads(),
                "INFERENCE_PRECISION_HINT": _PRECISIONS.get(manifest.dtype, "f32"),
            }
            self._model = core.compile_model(model, "CPU", settings)
        except Exception as error:  # noqa: BLE001 - it raises plain RuntimeErrors
            raise InstallError(f"{folder}/{ONNX}: openvino cannot run it ({error})") from error
        self.manifest = manifest
        self._size = batch_size if size.is_dynamic else size.get_length()
        self._requests = threading.local()

    def run(self, data: np.ndarray) -> np.ndarray:
        """Det (B, N, 6) of a batch."""
        return run_in_batches(self._run, data, self._size)

    def _run(self, data: np.ndarray) -> np.ndarray:
        if not hasattr(self._requests, "request"):
            self._requests.request = self._model.create_infer_request()
        return self._requests.request.infer({"data": data}, share_inputs=True)["det"].copy()
