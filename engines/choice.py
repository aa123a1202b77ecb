"""The fastest of several engines for one model on this machine: measured once, then remembered in a small file."""

import hashlib
import itertools
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InstallError
from common.files import write_atomically
from common.version import __version__, installed_version
from engines.engine import MXNET, Engine
from machine.cpu import ISA, cpu_model
from machine.gpus import CUDA_WHEEL
from model.manifest import Manifest

# In a round each engine has a turn of a few runs, so that other work on the machine slows all of them alike. The first
# run of a turn is not counted: caches are cold, and threads of the engine before may still wait at full speed.
ROUNDS, MAX_SECONDS = 6, 5.0
TURN_RUNS, TURN_SECONDS = 6, 0.5
MAX_ENTRIES, MAX_BYTES = 200, 1 << 20
_MXNET_WHEELS = ("mxnet", CUDA_WHEEL)
logger = logging.getLogger(__name__)


def fastest(openers: Mapping[str, Callable[[], Engine]], key: str, data: np.ndarray) -> Engine:
    """The engine that runs `data` in the least time (median), as remembered under `key` or measured now.

    openers: a function for each name that loads the engine. One that raises InstallError is left out, with a warning;
    the last one's error is raised.
    """
    remembered = recall(key)
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
    remember(key, best.name, seconds)
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


def recall(key: str) -> str | None:
    """The engine remembered under a key; None if there is none, or the file is damaged or cannot be read."""
    entry = _read_entries().get(key)
    engine = entry.get("engine") if isinstance(entry, dict) else None
    return engine if isinstance(engine, str) else None


def remember(key: str, engine: str, seconds: Mapping[str, float]) -> None:
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
