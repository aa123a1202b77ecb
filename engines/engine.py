"""What an engine is, which can run a given model on this machine, and the fastest of these.

Only MxnetEngine needs mxnet; the others run the model.onnx of a model folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from common.errors import InstallError, OptionError
from common.files import write_atomically
from common.version import __version__, installed_version
from config.groups import DeviceOptions
from engines.preprocess import InputWriter
from machine.cpu import ISA, cpu_model, engine_threads
from machine.gpus import CUDA_WHEEL, usable_gpus
from model.manifest import (
    BFLOAT16,
    FLOAT32,
    INT8,
    MANIFEST,
    ONNX,
    ONNX_INT8,
    Manifest,
    check_options,
    is_model_folder,
    read_manifest,
)

if TYPE_CHECKING:
    from machine.runtime import mx

AUTO, MXNET, ONNXRUNTIME, OPENVINO = "auto", "mxnet", "onnxruntime", "openvino"
ENGINES = (MXNET, ONNXRUNTIME, OPENVINO)
# In a round each engine has a turn of a few runs, so that other work on the machine slows all of them alike. The first
# run of a turn is not counted: caches are cold, and threads of the engine before may still wait at full speed.
ROUNDS, MAX_SECONDS = 6, 5.0
TURN_RUNS, TURN_SECONDS = 6, 0.5
MAX_ENTRIES, MAX_BYTES = 200, 1 << 20
_MXNET_WHEELS = ("mxnet", CUDA_WHEEL)
logger = logging.getLogger(__name__)
_EXTRAS = {MXNET: "cpu", ONNXRUNTIME: "onnx", OPENVINO: "openvino"}  # of pyproject.toml


class Engine(Protocol):
    """Runs one network. run() may be called from any number of threads."""

    name: str
    manifest: Manifest

    def run(self, data: np.ndarray) -> np.ndarray:
        """The input of a batch, as the manifest says -> det (B, N, 6), normalised to the input."""


@dataclass(frozen=True)
class EngineRequest:
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


def fastest(openers: Mapping[str, Callable[[], Engine]], key: str, data: np.ndarray) -> Engine:
    """The engine that runs `data` in the least time (median), as remembered under `key` or measured now.

    openers: a function for each name that loads the engine. One that raises InstallError is left out, with a warning;
    the last one's error is raised.
    """
    remembered = read_choice(key)
    if remembered is not None and remembered in openers:
        try:
            return openers[remembered]()
        except InstallError as error:
            logger.warning("%s", error)
    engines = _open_all(openers)
    if len(engines) == 1:
        return engines[0]
    seconds = measure(engines, data)
    best = min(engines, key=lambda engine: seconds[engine.name])
    shown = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in sorted(seconds.items(), key=lambda x: x[1]))
    logger.info("engine %s: the fastest here (%s)", best.name, shown)
    write_choice(key, best.name, seconds)
    return best


def _open_all(openers: Mapping[str, Callable[[], Engine]]) -> list[Engine]:
    engines: list[Engine] = []
    problem: InstallError | None = None
    for open_engine in openers.values():
        try:
            engines.append(open_engine())
        except InstallError as error:
            logger.warning("%s", error)
            problem = error
    if problem and not engines:
        raise problem
    return engines


def measure(engines: Sequence[Engine], data: np.ndarray) -> dict[str, float]:
    """{name: median seconds of a run}."""
    for engine in engines:
        engine.run(data)
    seconds: dict[str, list[float]] = {engine.name: [] for engine in engines}
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for engine in engines:
            seconds[engine.name] += _turn(engine, data)
        if time.perf_counter() - started > MAX_SECONDS:
            break
    return {name: statistics.median(values) for name, values in seconds.items()}


def _turn(engine: Engine, data: np.ndarray) -> list[float]:
    """Seconds of up to TURN_RUNS runs but the first, of one at least."""
    times = [time.perf_counter()]
    while len(times) < 3 or (len(times) <= TURN_RUNS and times[-1] - times[0] < TURN_SECONDS):
        engine.run(data)
        times.append(time.perf_counter())
    return [end - begin for begin, end in itertools.pairwise(times)][1:]


def choice_key(manifest: Manifest, batch_size: int, threads: int, engines: Sequence[str]) -> str:
    """What the fastest engine depends on, as a sha256: model, layers that stay float32, batch, threads, CPU, what of it
    oneDNN may use, versions of engines and ours."""
    files = {name: record.sha256 for name, record in manifest.files.items()}
    excluded = manifest.calibration.excluded if manifest.calibration else ()
    names = [wheel for name in engines for wheel in (_MXNET_WHEELS if name == MXNET else (name,))]
    versions = {"detector": __version__, **{name: installed_version(name) for name in names}}
    parts = [files, manifest.dtype, excluded, batch_size, threads, cpu_model(), os.environ.get(ISA), versions]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()


def cache_file() -> Path:
    """Where choices are remembered: engines.json below XDG_CACHE_HOME or ~/.cache; OSError without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the specification has relative paths ignored
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError as error:
            raise OSError(f"no home folder: {error}") from error
    return Path(base, "mxnet-detector-trainer", "engines.json")


def read_choice(key: str) -> str | None:
    """The engine remembered under a key; None if there is none, or the file is damaged or cannot be read."""
    entry = _read_entries().get(key)
    engine = entry.get("engine") if isinstance(entry, dict) else None
    return engine if isinstance(engine, str) else None


def write_choice(key: str, engine: str, seconds: Mapping[str, float]) -> None:
    """Adds a choice, the oldest ones making room; a file that cannot be written is one line in the log."""
    entries = _read_entries()
    entries.pop(key, None)
    entries[key] = {"engine": engine, "seconds": dict(seconds)}
    newest = dict(list(entries.items())[-MAX_ENTRIES:])
    try:
        path = cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(newest, indent=1) + "\n").encode("utf-8"))
    except OSError as error:
        logger.info("the fastest engine cannot be remembered (%s): it will be measured again next time", error)


def _read_entries() -> dict[str, Any]:
    """The entries by key, the oldest first; a file that is missing or damaged has none."""
    try:
        path = cache_file()
        if path.stat().st_size > MAX_BYTES:
            return {}
        entries = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}


def open_engine(name: str, request: EngineRequest) -> Engine:
    """The engine of this name, or, if it is `auto`, mxnet for checkpoints and GPUs, else the fastest installed one.

    OptionError for an engine that does not exist or that the model has no file for, InstallError for one that is not
    installed, CheckpointError where there is no model or it is damaged.
    """
    if name not in (AUTO, *ENGINES):
        raise OptionError(f"engine {name!r}: expected {AUTO}, {', '.join(ENGINES)}")
    if not is_model_folder(request.path):
        return _open_checkpoint(name, request)
    manifest = read_manifest(request.path)
    check_options(manifest, request.path, request.epoch, request.detection_options)
    on_gpu = _is_gpu(request.device)
    if name == AUTO:
        return _open_auto([MXNET] if on_gpu else usable_engines(manifest, request.path), request, manifest)
    if name != MXNET and on_gpu:
        _refuse_gpu(name, request.device)
    if name != MXNET and ONNX not in manifest.files:
        raise OptionError(f"engine {name}: {request.path} has no {ONNX}; export it again with deploy.py --onnx")
    _check_installed(name)
    return _open(name, request, manifest)


def _open_checkpoint(name: str, request: EngineRequest) -> Engine:
    if name not in (AUTO, MXNET):
        raise OptionError(
            f"engine {name}: {request.path} is no model folder (there is no {MANIFEST} in it); "
            "export the checkpoint first: deploy.py --onnx"
        )
    if not _is_installed(MXNET):
        raise InstallError(f"{request.path}: no model folder, and checkpoints need {_how_to_install(MXNET)}")
    from engines.mxnet_engine import MxnetEngine

    return MxnetEngine(request)


def usable_engines(manifest: Manifest, path: str | Path) -> list[str]:
    """The installed engines that have a file in the folder; InstallError if there is none."""
    fitting = ENGINES if ONNX in manifest.files else (MXNET,)
    possible = [name for name in fitting if _is_installed(name)]
    if not possible:
        raise InstallError(f"{path}: its model needs {' or '.join(_how_to_install(name) for name in fitting)}")
    return possible


def format_of(name: str, manifest: Manifest) -> str:
    """The number format, of DTYPES, in which an engine computes a model on a CPU that has it."""
    if name == MXNET:
        return manifest.dtype
    if name == ONNXRUNTIME or manifest.dtype == FLOAT32 and ONNX_INT8 not in manifest.files:
        return FLOAT32
    return INT8 if ONNX_INT8 in manifest.files else BFLOAT16


def _open_auto(names: list[str], request: EngineRequest, manifest: Manifest) -> Engine:
    if len(names) == 1:
        return _open(names[0], request, manifest)
    openers: dict[str, Callable[[], Engine]] = {name: partial(_open, name, request, manifest) for name in names}
    key = choice_key(manifest, request.batch_size, engine_threads(), names)
    return fastest(openers, key, InputWriter(manifest).noise(request.batch_size))


def _open(name: str, request: EngineRequest, manifest: Manifest) -> Engine:
    if name == MXNET:
        from engines.mxnet_engine import MxnetEngine

        return MxnetEngine(request)
    if name == ONNXRUNTIME:
        from engines.onnx_engines import OnnxEngine

        return OnnxEngine(request.path, manifest)
    from engines.onnx_engines import OpenvinoEngine

    return OpenvinoEngine(request.path, manifest, request.batch_size)


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
