"""What can run a network, which of it can run a given model on this machine, and the fastest of these.

Only MxnetEngine needs mxnet; the others run the model.onnx of a model folder.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InstallError, OptionError
from config.groups import DeviceOptions
from engines.choice import choice_key, fastest
from engines.engine import AUTO, ENGINES, MXNET, ONNXRUNTIME, OPENVINO, Engine, Task
from engines.preprocess import InputWriter
from machine.cpu import engine_threads
from machine.gpus import usable_gpus
from model.folder_files import MANIFEST, ONNX, check_options, is_model_folder, read_manifest
from model.manifest import Manifest

if TYPE_CHECKING:
    from machine.runtime import mx

_EXTRAS = {MXNET: "cpu", ONNXRUNTIME: "onnx", OPENVINO: "openvino"}  # of pyproject.toml
logger = logging.getLogger(__name__)


def open_engine(name: str, task: Task) -> Engine:
    """The engine of this name, or, if it is `auto`, mxnet for checkpoints and GPUs, else the fastest that can be had.

    OptionError for an engine that does not exist or that the model has no file for, InstallError for one that is not
    installed, CheckpointError where there is no model or it is damaged.
    """
    if name not in (AUTO, *ENGINES):
        raise OptionError(f"engine {name!r}: expected {AUTO}, {', '.join(ENGINES)}")
    if not is_model_folder(task.path):
        return _open_checkpoint(name, task)
    manifest = read_manifest(task.path)
    check_options(manifest, task.path, task.epoch, task.detection_options)
    on_gpu = _is_gpu(task.device)
    if name == AUTO:
        return _open_auto([MXNET] if on_gpu else _possible(manifest, task.path), task, manifest)
    if name != MXNET and on_gpu:
        _refuse_gpu(name, task.device)
    if name != MXNET and ONNX not in manifest.files:
        raise OptionError(f"engine {name}: {task.path} has no {ONNX}; export it again with deploy.py --onnx")
    _check_installed(name)
    return _open(name, task, manifest)


def _open_checkpoint(name: str, task: Task) -> Engine:
    if name not in (AUTO, MXNET):
        raise OptionError(
            f"engine {name}: {task.path} is no model folder (there is no {MANIFEST} in it); "
            "export the checkpoint first: deploy.py --onnx"
        )
    if not _is_installed(MXNET):
        raise InstallError(f"{task.path}: no model folder, and checkpoints need {_how_to_install(MXNET)}")
    from engines.mxnet_engine import MxnetEngine

    return MxnetEngine(task)


def _possible(manifest: Manifest, path: str | Path) -> list[str]:
    """The installed engines that have a file in the folder; InstallError if there is none."""
    fitting = ENGINES if ONNX in manifest.files else (MXNET,)
    possible = [name for name in fitting if _is_installed(name)]
    if not possible:
        raise InstallError(f"{path}: its model needs {' or '.join(_how_to_install(name) for name in fitting)}")
    return possible


def _open_auto(names: list[str], task: Task, manifest: Manifest) -> Engine:
    if len(names) == 1:
        return _open(names[0], task, manifest)
    openers: dict[str, Callable[[], Engine]] = {name: partial(_open, name, task, manifest) for name in names}
    key = choice_key(manifest, task.batch_size, engine_threads(), names)
    return fastest(openers, key, InputWriter(manifest).noise(task.batch_size))


def _open(name: str, task: Task, manifest: Manifest) -> Engine:
    if name == MXNET:
        from engines.mxnet_engine import MxnetEngine

        return MxnetEngine(task)
    if name == ONNXRUNTIME:
        from engines.onnx_engine import OnnxEngine

        return OnnxEngine(task.path, manifest)
    from engines.openvino_engine import OpenvinoEngine

    return OpenvinoEngine(task.path, manifest, task.batch_size)


def _is_gpu(device: mx.Context | DeviceOptions | None) -> bool:
    """Whether the network is to run on a GPU; None and options without --gpus: whether there is a usable one."""
    if device is None or isinstance(device, DeviceOptions):
        options = device or DeviceOptions()
        wanted = bool(usable_gpus()[0]) if options.gpus is None else bool(options.gpus.strip())
        return wanted and not options.cpu
    return bool(device.device_type == "gpu")


def _refuse_gpu(name: str, device: mx.Context | DeviceOptions | None) -> None:
    """OptionError where a GPU was asked for, as this engine runs on the CPU."""
    if isinstance(device, DeviceOptions):
        if device.gpus:
            raise OptionError(f"--gpus {device.gpus}: {name} runs on the CPU here; choose --engine {MXNET} or --cpu")
    elif device is not None:
        raise OptionError(f"ctx {device}: {name} runs on the CPU here; choose engine {MXNET!r} or leave ctx out")


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _check_installed(name: str) -> None:
    if not _is_installed(name):
        raise InstallError(f"engine {name} needs {_how_to_install(name)}")


def _how_to_install(name: str) -> str:
    return f"{name}, which is not installed (pip install -e '.[{_EXTRAS[name]}]')"
