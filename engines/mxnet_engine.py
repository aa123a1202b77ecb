"""The network in MXNet, of a model folder or a checkpoint, on a CPU or GPU: the only module of detect/ with mxnet."""

import threading

import numpy as np

from config.groups import DeviceOptions
from engines.engine import MXNET, Task
from machine.runtime import contexts
from model.bind import bind
from model.load import load_model


class MxnetEngine:
    """A model with reserved memory; a lock lets one thread at a time use it, as MXNet's executors demand."""

    name = MXNET

    def __init__(self, task: Task) -> None:
        """Loads and binds the model; errors as of model.load.load_model."""
        model = load_model(task.path, task.epoch, **task.detection_options)
        device = task.device
        if device is None or isinstance(device, DeviceOptions):
            wanted = device or DeviceOptions()
            device = contexts(wanted.gpus, wanted.cpu, wanted.cpus)[0]
        self.manifest = model.manifest
        self._bound = bind(model, device, task.batch_size)
        self._lock = threading.Lock()

    def run(self, data: np.ndarray) -> np.ndarray:
        """Det (B, N, 6) of a batch of the size that was bound."""
        with self._lock:
            return self._bound.run(data)
