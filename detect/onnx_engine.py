"""A folder's model.onnx in ONNX Runtime, on the CPU."""

from pathlib import Path

import numpy as np

from config.errors import InstallError
from config.threads import engine_threads
from deploy.folder_files import ONNX, read_verified
from deploy.manifest import Manifest
from detect.batches import run_in_batches
from detect.engine import ONNXRUNTIME


class OnnxEngine:
    """A session, which any number of threads may use at the same time."""

    name = ONNXRUNTIME

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        """InstallError where ONNX Runtime cannot be loaded or does not run the file."""
        content = read_verified(folder, ONNX, manifest)
        try:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = engine_threads()
            options.log_severity_level = 3  # errors
            # Threads that wait at full speed after a run would keep the cores from pre-processing and other engines.
            options.add_session_config_entry("session.force_spinning_stop", "1")
            self._session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - its exceptions have no base class of their own
            raise InstallError(f"{folder}/{ONNX}: onnxruntime cannot run it ({error})") from error
        self.manifest = manifest
        size = self._session.get_inputs()[0].shape[0]
        self._size = size if isinstance(size, int) else None

    def run(self, data: np.ndarray) -> np.ndarray:
        """Det (B, N, 6) of a batch."""
        return run_in_batches(self._run, data, self._size)

    def _run(self, data: np.ndarray) -> np.ndarray:
        return self._session.run(["det"], {"data": data})[0]
