"""What an engine is, and what it is asked to run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from config.groups import DeviceOptions
from model.manifest import Manifest

if TYPE_CHECKING:
    from machine.runtime import mx

AUTO, MXNET, ONNXRUNTIME, OPENVINO = "auto", "mxnet", "onnxruntime", "openvino"
ENGINES = (MXNET, ONNXRUNTIME, OPENVINO)


class Engine(Protocol):
    """Runs one network. run() may be called from any number of threads."""

    name: str
    manifest: Manifest

    def run(self, data: np.ndarray) -> np.ndarray:
        """The input of a batch, as the manifest says -> det (B, N, 6), normalised to the input."""


@dataclass(frozen=True)
class Task:
    """What is to be run: a model folder or the prefix of a checkpoint, and how.

    Attributes:
        device: a context of mxnet, options that name one, or None = the first usable GPU, else the CPU.
        detection_options: as of Detector.
    """

    path: str | Path
    epoch: int | str = "auto"
    device: mx.Context | DeviceOptions | None = None
    batch_size: int = 1
    detection_options: dict[str, Any] = field(default_factory=dict)
