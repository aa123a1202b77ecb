"""The accuracy of the same training in PyTorch: same network, initial weights, batches, schedule and evaluation.

    python -m benchmarks.torch_accuracy --config bccd --train-path data/bccd_trainval.rec \\
        --val-path data/bccd_test.rec --prefix output/torch --python torch/bin/python

It takes the options of train.py for an SSD with `--targets paper` and refuses what the other process does not do. Here
are the initial weights (or the pretrained ones), the order, augmentation and targets of train.py with the same --seed;
benchmarks/torch_trainer.py, a process of its own as two OpenMP run-times in one disturb each other, makes the updates:
PyTorch's convolutions (channels last), batch norm, loss functions and optimizer, with --dtype bfloat16 under autocast.
Rate and weight decay of each parameter are those of MXNet's optimizer: weights and gammas decay, unless --no-bn-decay;
biases and betas do not; biases of the heads learn twice as fast. After the last update the weights become a
checkpoint of ours, to be measured by evaluate.py (not to be resumed: it has no momentum), and are validated.

What differs from train.py:

- PyTorch's momentum adds up `gradient + wd * weight` and is multiplied by the newest rate; MXNet's adds up
  `rate * (gradient + wd * weight)`, each with the rate of its own update. While the rate is constant that is the same.
- Moving variances are of n - 1 values in PyTorch, of n here: less than a thousandth for n = batch * height * width
  above 1000. Their momentum is the same; PyTorch calls 1 - 0.9 what is 0.9 here.
- Adam's epsilon is added to another multiple of the root (AdamW's is not).
- bfloat16: autocast narrows convolutions; graph/mixed_precision.py other layers, too.
- Sums have another order. In float64 losses are the same to 8 digits and gradients to 6 (slow tests compare them); in
  float32 batch norms of random weights make rounding errors grow: the first loss is the same to some 1e-4.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, next_line, print_row, print_table, write_arrays
from common.errors import OptionError, TrainingError
from config.command_line import parse_options
from config.hyp_file import read_hyp
from config.options import fields_of, flag_of, flat_values, joined_options, option
from dataset.iterator import RecordIter, open_batches
from graph.mixed_precision import BFLOAT16, FLOAT32
from machine.command import log_to_terminal, run_command
from machine.cpu import configure_threads, engine_threads
from machine.runtime import mx
from symbol.detector.ssd import LABELS, SSD
from symbol.registry import family_of
from train.batches import batch_specs, first_epoch
from train.building import make_module, make_recipe, optimizer_params, schedule_origin, stage_pace, validated_size
from train.callbacks import finite_values
from train.checks import check_early
from train.epoch_end import seed_epoch
from train.metric import CLASSIC_NAMES
from train.module import DetectionModule
from train.options import TrainOptions, train_options_class
from train.preflight import Plan, preflight, validation_metric
from train.recipe import every_epoch
from train.run_files import lock_prefix
from train.saving import CheckpointWriter, left_out_of
from train.schedule import Origin
from train.stages import Patience, Stage, limit_updates

TRAINER = "benchmarks.torch_trainer"
HEADS = ("multibox_cls_pred_output", "multibox_loc_pred_output")  # logits (B, A, C + 1), offsets (B, A, 4)
# Options of which this benchmark knows some values alone, and those of which it knows the default.
KNOWN = {
    "targets": ("paper",),
    "optimizer": ("sgd", "adam", "adamw"),
    "dtype": (FLOAT32, BFLOAT16),
    "lr_schedule": ("steps", "step_epochs", "cosine", "cosine_epochs"),
    "kv_store": ("local", "device"),
}
LEFT_OUT = (
    *("resume", "finetune", "overwrite", "freeze", "freeze_epochs", "time_limit", "patience", "ema", "accumulate"),
    *("nominal_batch", "warmup_accumulate", "warmup_momentum", "warmup_bias_lr", "clip_gradient", "clip_gradient_norm"),
    *("val_loss", "profile", "monitor", "tensorboard", "live", "report"),
)
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class PeerOptions:
    """The option beside those of train.py."""

    python: str = option("", "the Python of an environment that has torch ('' = this one)", "peer")


@cache
def options_class() -> type[Any]:
    """The options of train.py and the other process."""
    return joined_options("TorchAccuracyOptions", train_options_class(), PeerOptions)


def check_known(options: TrainOptions) -> None:
    """OptionError for a network or an option that PyTorch does not train here."""
    if not isinstance(family_of(options.input.network), SSD):
        raise OptionError(f"--network {options.input.network} is no SSD: its losses are not written for PyTorch here")
    values, fields = flat_values(options), fields_of(type(options))
    for name, known in KNOWN.items():
        if values[name] not in known:
            raise OptionError(f"{flag_of(name)} {values[name]}: PyTorch trains here with {', '.join(known)} alone")
    for name in LEFT_OUT:
        if values[name] != fields[name].default:
            raise OptionError(f"{flag_of(name)} {values[name]}: PyTorch does not do this here; leave it out")


class TorchTrainer:
    """The process of benchmarks.torch_trainer."""

    def __init__(self, python: str, given: Mapping[str, Any], weights: Arrays) -> None:
        """Starts it; given: what it must know, without the files."""
        self._folder = tempfile.TemporaryDirectory()
        file, start, self._end = (Path(self._folder.name, name) for name in ("given.json", "start.npz", "end.npz"))
        file.write_text(json.dumps({**given, "start": str(start), "end": str(self._end)}), "utf-8")
        np.savez(start, **weights)
        command = [python or sys.executable, "-m", TRAINER, str(file)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        self.version = next_line(self._process, TRAINER).decode().strip()

    def update(self, rate: float, arrays: Sequence[np.ndarray]) -> tuple[list[float], float]:
        """(losses, seconds) of an update on data and targets."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # the next line tells its status
            write_arrays(self._process.stdin, {"rate": rate}, arrays)
        answer = json.loads(next_line(self._process, TRAINER))
        return answer["losses"], answer["seconds"]

    def weights(self) -> Arrays:
        """The trained weights; ends the process."""
        self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"{TRAINER} ended with status {self._process.returncode}")
        with np.load(self._end) as found:
            return dict(found)

    def close(self) -> None:
        """Ends the process and removes its files."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()


def ready_module(stage: Stage, plan: Plan, batches: RecordIter, val_iter: RecordIter | None) -> DetectionModule:
    """The Module of train.py with the weights that it begins with, and its optimizer."""
    start, options = plan.start, stage.options
    pace = stage_pace(stage, start, batches.places)
    recipe = make_recipe(options, start, pace.first, every_epoch)
    module = make_module(stage, plan, start, validated_size(stage, val_iter), recipe)
    seed_epoch(options.data.seed, start.epoch)
    module.bind(batches.provide_data, batches.provide_label)
    module.init_params(mx.init.Xavier(), start.arg_params, start.aux_params, allow_missing=True)
    arguments = optimizer_params(options, start, schedule_origin(start, pace), pace, 1)
    module.init_optimizer(None, options.schedule.optimizer, arguments)
    return module


def parameter_groups(optimizer: mx.optimizer.Optimizer) -> list[dict[str, Any]]:
    """Names, factor of the rate and weight decay of the parameters that an optimizer of MXNet treats alike."""
    found: dict[tuple[float, float], list[str]] = {}
    for name in optimizer.idx2name.values():
        key = optimizer.lr_mult.get(name, 1.0), optimizer.wd * optimizer.wd_mult.get(name, 1.0)
        found.setdefault(key, []).append(name)
    return [{"names": names, "lr_mult": rate, "weight_decay": wd} for (rate, wd), names in found.items()]


def training_of(stage: Stage, module: DetectionModule) -> tuple[dict[str, Any], Arrays]:
    """What the other process must know: the network with its recipe, and the module's weights."""
    options, internals = stage.options, stage.losses.get_internals()
    symbol = mx.sym.Group([internals[name] for name in HEADS])
    arg_params, aux_params = module.get_params()
    found = {name: array.asnumpy() for name, array in (arg_params | aux_params).items()}
    net: Any = options.net
    given = {
        "symbol": symbol.tojson(),
        "groups": parameter_groups(module._optimizer),
        "optimizer": options.schedule.optimizer,
        "momentum": options.schedule.momentum,
        "mining": {"ratio": net.negative_mining_ratio, "minimum": net.min_neg_samples},
        "loc_weight": net.loc_weight,
        "bfloat16": options.device.dtype == BFLOAT16,
        "threads": engine_threads(),
    }
    wanted = [*symbol.list_arguments(), *symbol.list_auxiliary_states()]
    return given, {name: found[name] for name in wanted if name != "data"}


def arrays_of(batch: mx.io.DataBatch) -> list[np.ndarray]:
    """The data of a batch and the targets in the order of the losses."""
    labels = {desc.name: array for desc, array in zip(batch.provide_label, batch.label, strict=True)}
    return [batch.data[0].asnumpy(), *(labels[name].asnumpy() for name in LABELS["paper"])]


@dataclass(frozen=True)
class Epoch:
    """Updates of an epoch, means of its losses and the last rate; seconds of PyTorch's updates and of all else."""

    updates: int
    losses: dict[str, float]
    rate: float
    seconds: tuple[float, float]


def train_epoch(trainer: TorchTrainer, batches: mx.io.DataIter, rates: Callable[[int], float], done: int) -> Epoch:
    """Feeds an epoch to the other process; done: updates before it."""
    begin, answers, rate = time.perf_counter(), [], 0.0
    for number, batch in enumerate(batches, done + 1):
        rate = rates(number)
        answers.append(trainer.update(rate, arrays_of(batch)))
        if not math.isfinite(sum(answers[-1][0])):
            raise TrainingError(f"the loss of update {number} is {answers[-1][0]}; lower --lr")
    means = np.mean([losses for losses, _ in answers], axis=0)
    seconds = sum(seconds for _, seconds in answers)
    losses = dict(zip(CLASSIC_NAMES, means.tolist(), strict=True))
    return Epoch(len(answers), losses, rate, (seconds, time.perf_counter() - begin - seconds))


def train_epochs(
    trainer: TorchTrainer, stage: Stage, batches: mx.io.DataIter, optimizer: mx.optimizer.Optimizer, begin: int
) -> list[Epoch]:
    """All epochs, from `begin` on, each a row of the table as soon as it is done; optimizer: MXNet's, for the rates."""
    rates = optimizer.lr_scheduler or (lambda update: optimizer.lr)
    print_table(("epoch", "updates", "rate", *CLASSIC_NAMES, "s of PyTorch", "s of all else"), [])
    epochs: list[Epoch] = []
    for number in range(begin, stage.options.schedule.end_epoch):
        if epochs:
            batches.reset()
        one = train_epoch(trainer, batches, rates, sum(epoch.updates for epoch in epochs))
        losses, seconds = ([f"{value:.4f}" for value in one.losses.values()], [f"{value:.1f}" for value in one.seconds])
        print_row([str(number + 1), str(one.updates), f"{one.rate:.5g}", *losses, *seconds])
        epochs.append(one)
    return epochs


def take_over(module: DetectionModule, weights: Arrays) -> None:
    """Gives the module the trained weights."""
    arg_params, aux_params = module.get_params()
    for params in (arg_params, aux_params):
        params.update({name: mx.nd.array(weights[name]) for name in params if name in weights})
    module.set_params(arg_params, aux_params)


def train(plan: Plan, python: str) -> None:
    """Trains the one stage of a plan in PyTorch, validates and saves it, and prints what it took."""
    (stage,), start = plan.stages, plan.start
    with ExitStack() as stack:
        train_spec, val_spec = batch_specs(stage, plan.sidecars, start)
        engine, close = stage.options.data.data_engine, stage.options.augmentation.close_mosaic
        train_iter = stack.enter_context(closing(open_batches(train_spec, engine)))
        val_iter = stack.enter_context(closing(open_batches(val_spec, engine))) if val_spec else None
        stage, batches = limit_updates(stage, 0, start.epoch, train_iter, first_epoch(start))
        if close:
            train_iter.end_mosaic(stage.run_end - close)
        module = ready_module(stage, plan, train_iter, val_iter)
        trainer = stack.enter_context(closing(TorchTrainer(python, *training_of(stage, module))))
        title = f"{stage.options.input.network}, batches of {train_iter.batch_size}, {stage.options.device.dtype}"
        print(f"PyTorch {trainer.version}, {title}; {machine()}\n")
        epochs = train_epochs(trainer, stage, batches, module._optimizer, start.epoch)
        take_over(module, trainer.weights())
        metric = validation_metric(stage.options, stage.classes)
        scores = finite_values(module.score(val_iter, metric)) if val_iter else {}
        left_out = left_out_of(train_iter, val_iter)
    writer = CheckpointWriter(stage, module, None, Origin(), start.begun, plan.sidecars, Patience(0, {}), left_out)
    record = {
        "num_update": sum(epoch.updates for epoch in epochs),
        "learning_rate": epochs[-1].rate,
        "train": epochs[-1].losses,
        "validation": scores,
    }
    writer.save(plan.options.output.prefix, stage.options.schedule.end_epoch, record)
    report(epochs, scores)


def report(epochs: Sequence[Epoch], scores: Mapping[str, float]) -> None:
    """Prints the seconds of an epoch and the scores."""
    torch, other = (statistics.median(one) for one in zip(*(epoch.seconds for epoch in epochs), strict=True))
    print(f"\nmedian of an epoch: {torch:.1f} s in PyTorch's updates, {other:.1f} s for batches and their way there")
    for name, value in scores.items():
        print(f"{name}: {value:.4f}")


def main(argv: list[str]) -> None:
    """Trains and prints."""
    about = "Trains an SSD as train.py does, but in PyTorch, and measures it"
    options = parse_options(options_class(), argv, about, presets=True, files={"hyp": read_hyp})
    check_known(options)
    check_early(options)
    configure_threads(options.device.cpus)
    log_to_terminal()
    plan = preflight(options)
    with lock_prefix(options.output.prefix):
        train(plan, options.python)


if __name__ == "__main__":
    run_command(main)
