"""A folder's model.onnx in ONNX Runtime, on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InstallError
from common.sizes import DATA, DET
from engines.batches import Shape, check_contract, run_in_batches
from engines.engine import ONNXRUNTIME
from machine.cpu import engine_threads
from model.folder_files import ONNX, read_verified
from model.manifest import Manifest


class OnnxEngine:
    """A session, which any number of threads may use at the same time."""

    name = ONNXRUNTIME

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        """InstallError where ONNX Runtime cannot be loaded or run the file, CheckpointError for a wrong file."""
        origin = f"{folder}/{ONNX}"
        self._session = _load(read_verified(folder, ONNX, manifest), origin)
        inputs, outputs = _ports(self._session.get_inputs()), _ports(self._session.get_outputs())
        check_contract(origin, manifest, inputs, outputs)
        self.manifest = manifest
        self._size = inputs[DATA][0]

    def run(self, data: np.ndarray) -> np.ndarray:
        """Det (B, N, 6) of a batch."""
        return run_in_batches(self._run, data, self._size)

    def _run(self, data: np.ndarray) -> np.ndarray:
        return self._session.run([DET], {DATA: data})[0]


def _load(content: bytes, origin: str) -> Any:
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


def _ports(arguments: list[Any]) -> dict[str, Shape]:
    """{name: shape}; a side is a number, or a name or nothing for any number."""
    return {a.name: tuple(side if isinstance(side, int) else None for side in a.shape or ()) for a in arguments}
