"""What matching, mining and losses cost in a training step, by target rule.

python -m benchmarks.targets          (about a minute)

Full steps of a Module (forward, backward, update, wait) of one network, in turns:
- no loss: the gradients of the heads are given;
- constant targets: cross entropy and smooth L1 with given targets and weights, nothing to match or to mine;
- targets=paper: mining and losses of symbol/losses.py; matching was done by the assigner in the data workers. It is
  measured apart, for one image in one process, and added as core seconds: images * seconds / cores;
- targets=mxnet: MultiBoxTarget and its losses in the graph.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.common import Seconds, in_turns, machine, median_ratio, print_table, seconds_of, verdict
from common.sizes import input_size
from config.command_line import parse_options
from config.options import option
from machine.command import run_command
from machine.cpu import usable_threads
from machine.runtime import mx
from symbol.symbol_factory import get_assigner, get_symbol_train
from train.stages import without_det

REQUIRED = 0.15  # matching, mining and losses, of the step with constant targets
NO_LOSS, CONSTANT, PAPER, MXNET = "no loss", "constant targets", "targets=paper", "targets=mxnet"
MATCHING = "matching"
MINED_PER_POSITIVE = 3
WARM_UP = 3


@dataclass(frozen=True)
class TargetsOptions:
    """What to measure."""

    network: str = option("mobilenet", "network")
    width: float = option(0.5, "its width multiplier")
    data_shape: tuple[int, ...] = option((320,), "input side, or height,width", minimum=32)
    batch_size: int = option(16, "images per batch", minimum=1)
    objects: int = option(15, "objects in each image", minimum=1)
    label_rows: int = option(56, "rows of the label, as many as the fullest image of a data set needs", minimum=1)
    num_class: int = option(20, "number of classes", minimum=1)
    rounds: int = option(21, "measurements of each kind, in turns; the table has medians", minimum=1)


class Batch:
    """Random images and objects, and all targets made of them."""

    def __init__(self, options: TargetsOptions) -> None:
        """Matches the objects of every image."""
        rng = np.random.default_rng(0)
        self.size = input_size(options.data_shape)
        self.data = rng.normal(0, 60, (options.batch_size, 3, *self.size)).astype(np.float32)
        self.objects = [random_objects(rng, options) for _ in range(options.batch_size)]
        self.assigner = get_assigner(options.network, options.data_shape, options.num_class, width=options.width)

    def match(self) -> list[dict[str, np.ndarray]]:
        """The assigner's targets of every image."""
        assert self.assigner is not None
        return [self.assigner(objects, self.size) for objects in self.objects]

    def paper_labels(self) -> dict[str, np.ndarray]:
        """Labels of targets=paper, as the iterator delivers them."""
        targets = self.match()
        labels = {name: np.stack([one[name] for one in targets]) for name in targets[0]}
        labels["normaliser"][:] = labels["normaliser"].sum()
        return labels

    def classic_labels(self, rows: int) -> dict[str, np.ndarray]:
        """The label of targets=mxnet: unused rows are -1."""
        label = np.full((len(self.objects), max(rows, len(self.objects[0])), 6), -1, np.float32)
        for row, objects in zip(label, self.objects, strict=True):
            row[: len(objects)] = objects
        return {"label": label}

    def constant_labels(self) -> dict[str, np.ndarray]:
        """Targets and weights as if the first background anchors had been mined."""
        labels = self.paper_labels()
        positive = labels["cls_target"] > 0
        background = np.cumsum(~positive, axis=1) * ~positive
        mined = (background > 0) & (background <= MINED_PER_POSITIVE * positive.sum(axis=1, keepdims=True))
        count = labels["normaliser"][0, 0]
        return {
            "cls_target": labels["cls_target"],
            "cls_weight": ((positive | mined) / count).astype(np.float32),
            "loc_target": labels["loc_target"],
            "loc_weight": (positive / count).astype(np.float32)[:, :, None],
        }


def random_objects(rng: np.random.Generator, options: TargetsOptions) -> np.ndarray:
    """(n, 6) label rows with sides from 0.05 to 0.5 of the image."""
    side = rng.uniform(0.05, 0.5, (options.objects, 2))
    low = rng.uniform(0, 1 - side)
    ids = rng.integers(0, options.num_class, (options.objects, 1))
    return np.concatenate([ids, low, low + side, np.zeros((options.objects, 1))], axis=1).astype(np.float32)


def constant_loss(heads: Sequence[Any]) -> Any:
    """Weighted cross entropy and smooth L1 of the heads (class logits, offsets), everything else given."""
    cls_target, cls_weight, loc_target, loc_weight = map(
        mx.sym.var, ("cls_target", "cls_weight", "loc_target", "loc_weight")
    )
    log_prob = mx.sym.pick(mx.sym.log_softmax(heads[0], axis=-1), cls_target, axis=2)  # (B, A)
    error = mx.sym.smooth_l1(heads[1] - loc_target, scalar=1.0)  # (B, A, 4)
    losses = (mx.sym.sum(-log_prob * cls_weight, axis=1), mx.sym.sum(mx.sym.broadcast_mul(error, loc_weight), axis=1))
    return mx.sym.Group([mx.sym.make_loss(loss) for loss in losses])


def make_step(symbol: Any, data: np.ndarray, labels: dict[str, np.ndarray]) -> Callable[[], None]:
    """A full training step of a bound Module; without labels the outputs get gradients of a usual size."""
    module = mx.mod.Module(symbol, label_names=list(labels))
    module.bind([("data", data.shape)], [(name, array.shape) for name, array in labels.items()] or None)
    module.init_params(mx.init.Xavier())
    module.init_optimizer(optimizer="sgd", optimizer_params={"learning_rate": 1e-5, "momentum": 0.9, "wd": 5e-4})
    batch = mx.io.DataBatch([mx.nd.array(data)], [mx.nd.array(array) for array in labels.values()])
    gradients = None if labels else [mx.nd.full(shape, 1e-4) for _, shape in module.output_shapes]

    def step() -> None:
        module.forward(batch, is_train=True)
        module.backward(gradients)
        module.update()
        mx.nd.waitall()

    return step


def make_steps(options: TargetsOptions, batch: Batch) -> dict[str, Callable[[], None]]:
    """A training step for each kind of target."""

    def symbol(targets: str) -> Any:
        return get_symbol_train(
            options.network, options.data_shape, options.num_class, width=options.width, targets=targets
        )

    internals = symbol("paper").get_internals()
    heads = [internals[f"multibox_{name}_pred_output"] for name in ("cls", "loc")]
    return {
        NO_LOSS: make_step(mx.sym.Group(heads), batch.data, {}),
        CONSTANT: make_step(constant_loss(heads), batch.data, batch.constant_labels()),
        PAPER: make_step(without_det(symbol("paper")), batch.data, batch.paper_labels()),
        MXNET: make_step(without_det(symbol("mxnet")), batch.data, batch.classic_labels(options.label_rows)),
    }


def measure(options: TargetsOptions) -> dict[str, Seconds]:
    """Seconds of each kind of step and of the matching of a batch on all cores, round by round."""
    batch = Batch(options)
    steps = make_steps(options, batch)
    runs: dict[str, Callable[[], Any]] = {**steps, MATCHING: batch.match}
    for _ in range(WARM_UP):
        for run in runs.values():
            run()
    seconds = in_turns({name: partial(seconds_of, run) for name, run in runs.items()}, options.rounds)
    seconds[MATCHING] = [value / usable_threads() for value in seconds[MATCHING]]
    return seconds


def share(seconds: dict[str, Seconds], name: str, floor: str) -> float:
    """What a kind of step, with its matching, takes more than the floor, of the step with constant targets."""
    matching = seconds[MATCHING] if name == PAPER else [0.0] * len(seconds[name])
    extra = [total + match - base for total, match, base in zip(seconds[name], matching, seconds[floor], strict=True)]
    return median_ratio(extra, seconds[CONSTANT])


def report(options: TargetsOptions, seconds: dict[str, Seconds]) -> None:
    """Prints the table and the ratio that is required."""
    print(
        f"{options.network} {options.width:g} at {options.data_shape}, batch {options.batch_size}, {options.objects} "
        f"objects an image, {options.label_rows} label rows, {options.num_class} classes; {machine()}\n"
    )
    milliseconds = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    print_table(
        ("step", "ms", "matching + mining + loss, of the constant step", "more than constant targets"),
        [
            (
                name,
                f"{milliseconds[name]:.1f}",
                *(f"{share(seconds, name, floor):+.1%}" for floor in (NO_LOSS, CONSTANT)),
            )
            for name in (NO_LOSS, CONSTANT, PAPER, MXNET)
        ],
    )
    cores, batch_time = usable_threads(), milliseconds[MATCHING]
    print(
        f"\nmatching for targets=paper (in the workers; in the shares, not in the ms): {batch_time:.1f} ms a batch on "
        f"{cores} cores, {batch_time * cores / options.batch_size:.2f} ms an image on one core"
    )
    total = share(seconds, PAPER, NO_LOSS)
    print(
        f"targets=paper: matching + mining + loss take {total:.1%} of the step with constant targets "
        f"({verdict(total, REQUIRED, at_most=True)}); targets=mxnet: {share(seconds, MXNET, NO_LOSS):.1%}"
    )


def main(argv: list[str]) -> None:
    """Measures and prints."""
    options = parse_options(TargetsOptions, argv, "Cost of matching, mining and losses")
    report(options, measure(options))


if __name__ == "__main__":
    run_command(main)
