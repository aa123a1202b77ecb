"""train.py --profile N: where N steps of training spend their time, by MXNet's operator and by oneDNN's kernel.

Nothing is trained. It leaves PREFIX-profile.txt, two tables, and PREFIX-profile.json, MXNet's own trace, which
chrome://tracing and Perfetto show.
"""

import json
import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, NamedTuple

from common.files import write_atomically
from dataset.iterator import open_batches
from machine.runtime import mx
from train.batches import batch_specs
from train.measuring import Trial, with_dtype
from train.options import TrainOptions
from train.preflight import preflight
from train.stages import stage_at

WARM_UP = 3  # batches before, in which memory is reserved and kernels are made
LARGEST = 30  # rows of a table
_FIELDS = 11  # of oneDNN's line of a kernel that ran: dnnl_verbose,exec,cpu,primitive,implementation,pass,...,ms
_PREFIXES = ("dnnl_verbose", "mkldnn_verbose")
_STDOUT = 1
_WAITING = ("WaitForVar", "DeleteVariable")  # the engine's own, no work
logger = logging.getLogger(__name__)


class Share(NamedTuple):
    """What one row adds up."""

    calls: int = 0
    milliseconds: float = 0.0

    def plus(self, milliseconds: float) -> "Share":
        """With one call more."""
        return Share(self.calls + 1, self.milliseconds + milliseconds)


def profile_training(options: TrainOptions) -> None:
    """Measures options.output.profile steps of the run that options describe, and writes both files.

    It must be called before mxnet computes anything: oneDNN reads then whether it shall tell of its kernels.
    """
    steps, prefix = options.output.profile, options.output.prefix
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    os.environ["MXNET_EXEC_BULK_EXEC_TRAIN"] = "0"  # else the engine runs many operators as one
    with kernel_log() as log:
        seconds, operators, begin = _measure(options, steps, f"{prefix}-profile.json", log)
        log.seek(begin)
        kernels = kernel_shares(log.read().decode(errors="replace").splitlines())
    text = report(steps, seconds, operators, kernels)
    write_atomically(Path(f"{prefix}-profile.txt"), text.encode())
    print(text)
    logger.info("written: %s-profile.txt and %s-profile.json, a trace for chrome://tracing", prefix, prefix)


def _measure(options: TrainOptions, steps: int, path: str, log: BinaryIO) -> tuple[float, dict[str, Share], int]:
    """(seconds of all steps, operators, where in the log the steps begin)."""
    plan = preflight(options)
    stage = stage_at(plan.stages, plan.start.epoch)
    with closing(open_batches(batch_specs(stage, plan.sidecars, plan.start)[0], options.data.data_engine)) as batches:
        stage = with_dtype(stage, plan, plan.start, batches)
        trial = Trial(stage, plan, plan.start, batches, None)
        source = _forever(batches)
        for _ in range(WARM_UP):
            trial.train(next(source))
        mx.nd.waitall()
        begin = log.seek(0, os.SEEK_END)
        mx.profiler.set_config(
            profile_symbolic=True, profile_imperative=True, profile_memory=False, profile_api=False,
            aggregate_stats=True, filename=path,
        )  # fmt: skip
        mx.profiler.set_state("run")
        begun = time.perf_counter()
        for _ in range(steps):
            trial.train(next(source))
        mx.nd.waitall()
        seconds = time.perf_counter() - begun
        mx.profiler.set_state("stop")
        found = operator_shares(json.loads(mx.profiler.dumps(format="json")))
        mx.profiler.dump()
        return seconds, found, begin


def _forever(batches: Iterable[mx.io.DataBatch]) -> Iterator[mx.io.DataBatch]:
    while True:
        yield from batches
        batches.reset()  # type: ignore[attr-defined]


@contextmanager
def kernel_log() -> Iterator[BinaryIO]:
    """What C code writes to standard output, where oneDNN tells of each kernel; Python's prints go where they went."""
    os.environ["DNNL_VERBOSE"] = os.environ["MKLDNN_VERBOSE"] = "1"
    sys.stdout.flush()
    kept, python = os.dup(_STDOUT), sys.stdout
    with TemporaryFile() as file, os.fdopen(os.dup(kept), "w") as terminal:
        os.dup2(file.fileno(), _STDOUT)
        sys.stdout = terminal
        try:
            yield file
        finally:
            sys.stdout = python
            os.dup2(kept, _STDOUT)
            os.close(kept)


def kernel_shares(lines: Iterable[str]) -> dict[str, Share]:
    """Time by primitive, pass and implementation, of oneDNN's lines (its DNNL_VERBOSE=1); other lines are skipped."""
    found: dict[str, Share] = defaultdict(Share)
    for line in lines:
        parts = line.strip().split(",")
        if len(parts) >= _FIELDS and parts[0] in _PREFIXES and parts[1] == "exec":
            try:
                milliseconds = float(parts[-1])
            except ValueError:  # cut off
                continue
            which = " ".join(part for part in (parts[3], parts[5], parts[4]) if part != "undef")
            found[which] = found[which].plus(milliseconds)
    return dict(found)


def operator_shares(stats: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> dict[str, Share]:
    """Time by operator, of what mx.profiler.dumps(format="json") gives."""
    return {
        name: Share(int(one["Count"]), float(one["Total"]))
        for name, one in stats["Time"].get("operator", {}).items()
        if name not in _WAITING
    }


def report(steps: int, seconds: float, operators: Mapping[str, Share], kernels: Mapping[str, Share]) -> str:
    """Both tables; ms of a step, and the share of what its table adds up."""
    step = 1e3 * seconds / steps
    head = f"{steps} steps of {step:.1f} ms, traced, one operator at a time (an untraced step is faster)\n"
    tables = [_table("operator of MXNet", operators, steps), _table("kernel of oneDNN", kernels, steps)]
    return "\n".join([head, *tables])


def _table(title: str, shares: Mapping[str, Share], steps: int) -> str:
    total = sum(share.milliseconds for share in shares.values())
    if not total:
        return f"{title}: none\n"
    rows = sorted(shares.items(), key=lambda item: -item[1].milliseconds)
    lines = [f"{'ms a step':>10} {'share':>6} {'calls':>6}  {title}"]
    for name, share in [*rows[:LARGEST], ("in all", Share(sum(one.calls for one in shares.values()), total))]:
        part = 100 * share.milliseconds / total
        lines.append(f"{share.milliseconds / steps:10.2f} {part:5.1f}% {share.calls / steps:6.0f}  {name}")
    return "\n".join(lines) + "\n"
