"""Writes checkpoints of a run and decides which of them are there: of epochs, of updates, the best one."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.errors import OptionError
from common.sizes import input_size
from config.groups import pixel_options, rect_multiple, validation_kinds
from dataset.iterator import RecordIter
from dataset.left_out import LeftOut
from dataset.sidecar import Sidecar
from model.checkpoint import CheckpointMeta, drop_after, list_epochs, remove_checkpoint, save_checkpoint
from train.callbacks import finite_values
from train.metric import LossMetric
from train.module import DetectionModule
from train.options import TrainOptions, network_options
from train.schedule import Origin, Plateau
from train.stages import Patience, Stage

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes the module's state as checkpoints of one run."""

    def __init__(
        self,
        stage: Stage,
        module: DetectionModule,
        plateau: Plateau | None,
        origin: Origin,
        begun: int,
        sidecars: Sequence[Sidecar | None],
        patience: Patience,
        left_out: Mapping[str, LeftOut],
    ) -> None:
        """stage: what the module trains; plateau: its schedule, if it is that one; origin: what another one counts
        from; begun: epochs that the run found done when it began with weights alone; sidecars: of the records;
        patience: ends the run; left_out: records that cannot be read, by `train` and `validation`."""
        self.plateau, self.origin, self.begun = plateau, origin, begun
        self.records, self.bit_depth = record_digests(sidecars), bit_depth_of(sidecars)
        self.patience, self.time_limit = patience, stage.time_limit
        self._left_out = left_out
        self.options, self.classes, self.module = stage.options, stage.classes, module
        self.symbol_json, self.symbol_sha256 = stage.symbol.tojson(), stage.digest

    def save(self, prefix: str, number: int, record: dict[str, Any], position: dict[str, Any] | None = None) -> None:
        """Writes the set `number` of a prefix; record: num_update, learning_rate, train, validation; position: as
        CheckpointMeta has it."""
        options = self.options
        meta = CheckpointMeta(
            epoch=number,
            num_update=record["num_update"],
            learning_rate=record["learning_rate"],
            scores={"train": record["train"], "validation": record["validation"]},
            seed=options.data.seed,
            class_names=tuple(self.classes),
            **pixel_options(options.input),
            bit_depth=self.bit_depth,
            rect=rect_multiple(options.validation),
            metrics=validation_kinds(options.validation),
            overlap=options.validation.overlap,
            use_difficult=options.validation.use_difficult,
            data_shape=input_size(options.input.data_shape),
            network=options.input.network,
            options=network_options(options),
            batch_size=options.data.batch_size,
            freeze_epochs=options.schedule.freeze_epochs,
            earlier_updates=self.module.earlier_updates,
            plateau=self.plateau.state() if self.plateau else {},
            origin=self.origin.numbers(),
            patience=self.patience.state(),
            time_limit=self.time_limit,
            precision=self.module.precision,
            begun=self.begun,
            position=position or {},
            left_out={name: found for name, one in self._left_out.items() if (found := one.state())},
            records=self.records,
            symbol_sha256=self.symbol_sha256,
        )
        arg_params, aux_params = self.module.params_to_save()
        state = self.module.optimizer_state()
        save_checkpoint(prefix, self.symbol_json, arg_params, aux_params, state, meta)


def record_digests(sidecars: Sequence[Sidecar | None]) -> dict[str, str]:
    """{train, validation: sha256} of the records that have sidecars."""
    return {name: one.sha256 for name, one in zip(("train", "validation"), sidecars, strict=False) if one}


def left_out_of(train_iter: RecordIter, val_iter: RecordIter | None) -> dict[str, LeftOut]:
    """{train, validation: the records that are left out} of a run's iterators."""
    return {"train": train_iter.left_out} | ({"validation": val_iter.left_out} if val_iter else {})


def bit_depth_of(sidecars: Sequence[Sidecar | None]) -> str:
    """The rule of --bit-depth by which the records were packed, of the first that has a sidecar."""
    return next((one.bit_depth for one in sidecars if one), "")


class SavePlan:
    """Which epochs get a checkpoint, and which checkpoints stay.

    --save-every N: each N-th epoch. --save-every Ni: the first epoch that ends after each N-th update.
    --save-best-only: these until there is a best epoch, to resume from, then none. The best epoch so far and the last
    one of the run always get one.
    """

    def __init__(self, options: TrainOptions, num_update: int) -> None:
        """num_update: when the run started; OptionError for --save-best-only without validation."""
        if options.output.save_best_only and not options.data.val_path:
            raise OptionError("--save-best-only needs a validation; give --val-path or leave the option out")
        self.keep, self.best_only = options.output.keep, options.output.save_best_only
        self.epochs, self.updates = parse_interval(options.output.save_every)
        self._saved_update = num_update

    def is_due(self, number: int, num_update: int, is_best: bool, is_last: bool, has_best: bool = True) -> bool:
        """Whether the epoch of this number, counted from 1, gets a checkpoint; has_best: one before it was the best."""
        regular = number % self.epochs == 0 if self.epochs else self._passed(num_update)
        due = is_best or is_last or (regular and not (self.best_only and has_best))
        if due:
            self._saved_update = num_update
        return due

    def prune(self, prefix: str, best: int | None) -> None:
        """Removes all but the newest `keep` sets (0 = all) and the best one; the newest always stays."""
        keep = 1 if self.best_only else self.keep
        if keep:
            _remove(prefix, (epoch for epoch in list_epochs(prefix)[:-keep] if epoch != best))

    def _passed(self, num_update: int) -> bool:
        return num_update // self.updates > self._saved_update // self.updates


class Snapshots:
    """Batch-end callback of --save-every Ni: checkpoints PREFIX-iter-NNNN after each N-th update, in mid-epoch.

    A run is not resumed from them (train/pauses.py has those that it is), but they are whole models for --pretrained,
    evaluate.py and deploy.py. Those that an abandoned run has left beyond the run's start are removed.
    """

    def __init__(self, writer: CheckpointWriter, metric: LossMetric, num_update: int) -> None:
        """metric: the training metric; num_update: when the run started."""
        options = writer.options
        self.prefix, self.keep = f"{options.output.prefix}-iter", options.output.keep
        self.every = parse_interval(options.output.save_every)[1]
        self._writer, self._metric = writer, metric
        self._start: int | None = num_update  # None once what lies beyond it is removed
        self._seen = num_update

    def __call__(self, param: Any) -> None:
        """param: BatchEndParam of fit."""
        update = self._writer.module.num_update
        due = self.every and update > self._seen and update % self.every == 0
        self._seen = update
        if due:
            self._writer.module.average_over_ranks()
            self._save(update)

    def _save(self, update: int) -> None:
        train = finite_values(list(zip(*self._metric.get(), strict=True)))
        rate = self._writer.module.learning_rate
        self._writer.save(
            self.prefix, update, {"num_update": update, "learning_rate": rate, "train": train, "validation": {}}
        )
        if self._start is not None:
            drop_after(self.prefix, self._start, update)
            self._start = None
        if self.keep:
            _remove(self.prefix, list_epochs(self.prefix)[: -self.keep])
        logger.info("snapshot of update %d: %s-%04d.params", update, self.prefix, update)


def parse_interval(text: str | int) -> tuple[int, int]:
    """(epochs, updates) of --save-every, one of which is 0."""
    text = str(text)
    return (0, int(text[:-1])) if text.endswith("i") else (int(text), 0)


def _remove(prefix: str, numbers: Iterable[int]) -> None:
    for number in numbers:
        remove_checkpoint(prefix, number)
