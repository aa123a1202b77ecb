"""EfficientDet-D0's forward beside that of PyPI's effdet (eager PyTorch), random weights, without post-processing.

python -m benchmarks.effdet_forward        (about a minute; needs the extra bench)
"""

import json
import statistics
import subprocess  # noqa: S404 - this very interpreter, no shell
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.common import in_turns, machine, median_ratio, print_table, verdict
from config.command_line import parse_options
from config.options import option
from graph.onednn import suit_onednn
from machine.command import run_command
from machine.cpu import usable_threads
from machine.runtime import mx
from symbol.detector.efficientdet import ROWS as EFFDET_NETWORKS
from symbol.detector.efficientdet import predictions
from symbol.network_options import EffDetOptions

NETWORK = "efficientdet_d0"
REQUIRED = 1.3  # times effdet's seconds, at most
OURS, PEER = "this project", "effdet"


@dataclass(frozen=True)
class EffDetBenchmarkOptions:
    """What to measure."""

    size: int = option(512, "input side", minimum=128)
    batch: int = option(1, "images of a forward", minimum=1)
    classes: int = option(90, "number of classes", minimum=1)
    forwards: int = option(10, "forwards of one measurement", minimum=1)
    rounds: int = option(7, "measurements of each, in turns; the table has medians", minimum=1)


class Peer:
    """The process of benchmarks.torch_effdet."""

    def __init__(self, options: EffDetBenchmarkOptions) -> None:
        """Starts it and waits until the network is there."""
        given = {"size": (options.size,) * 2, "batch": options.batch, "classes": options.classes}
        command = [sys.executable, "-m", "benchmarks.torch_effdet", json.dumps(given | {"threads": usable_threads()})]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        ready = json.loads(self._answer())
        self.parameters, self.version = ready["parameters"], ready["version"]

    def seconds(self, forwards: int) -> float:
        """Seconds of so many forwards."""
        assert self._process.stdin
        print(forwards, file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"benchmarks.torch_effdet ended with status {self._process.wait()}; install the extra bench"
            )
        return line


def make_forward(options: EffDetBenchmarkOptions) -> tuple[Callable[[int], float], int]:
    """A function that makes forwards of our network and returns their seconds, and its number of parameters.

    The network is rewritten as that of a deployed model is when it is bound; images of a batch run one after the other,
    as there.
    """
    size = (options.size, options.size)
    heads = predictions(NETWORK, EFFDET_NETWORKS[NETWORK], size, options.classes, EffDetOptions())
    module = mx.mod.Module(mx.sym.Group([heads.cls, heads.box]), label_names=None, context=mx.cpu())
    module.bind([("data", (1, 3, *size))], for_training=False)
    module.init_params(mx.init.Xavier())
    arg_params, aux_params = module.get_params()
    symbol, *params = suit_onednn(module.symbol, arg_params, aux_params, (1, 3, *size))
    executor = symbol.simple_bind(mx.cpu(), grad_req="null", data=(1, 3, *size))
    executor.copy_params_from(*params)
    executor.arg_dict["data"][:] = mx.nd.random.normal(shape=(1, 3, *size))

    def run(forwards: int) -> float:
        begin = time.perf_counter()
        for _ in range(forwards * options.batch):
            executor.forward(is_train=False)
            mx.nd.waitall()
        return time.perf_counter() - begin

    return run, sum(array.size for array in arg_params.values())


def main(argv: list[str]) -> None:
    """Measures and prints a table and the ratio that is required."""
    options = parse_options(EffDetBenchmarkOptions, argv, "EfficientDet-D0's forward beside effdet's")
    forward, parameters = make_forward(options)
    peer = Peer(options)
    try:
        candidates = {OURS: forward, PEER: peer.seconds}
        for run in candidates.values():
            run(2)
        seconds = in_turns({name: partial(run, options.forwards) for name, run in candidates.items()}, options.rounds)
    finally:
        peer.close()
    print(
        f"D0 at {options.size}, batch {options.batch}, {options.classes} classes, fp32; {machine()}; {peer.version}\n"
    )
    counts = {OURS: parameters, PEER: peer.parameters}
    rows = [
        (name, f"{1e3 * statistics.median(seconds[name]) / options.forwards:.1f}", f"{counts[name] / 1e6:.2f} M")
        for name in (OURS, PEER)
    ]
    print_table(("network", "ms a forward", "parameters"), rows)
    ratio = median_ratio(seconds[OURS], seconds[PEER])
    print(f"\n{ratio:.2f} times effdet's time ({verdict(ratio, REQUIRED, at_most=True)})")


if __name__ == "__main__":
    run_command(main)
