"""The end of an epoch: metrics line, checkpoint, best and old ones, curves, TensorBoard, the next epoch's seed."""

import logging
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from config.run import TrainOptions, best_metric, network_options, pixel_options, rect_multiple
from config.runtime import mx
from symbol.symbol_factory import input_size
from train.callbacks import Progress, finite_values
from train.checkpoint import drop_after, list_epochs, remove_checkpoint, save_checkpoint, write_best
from train.curves import save_curves
from train.metric import LossMetric
from train.module import DetectionModule
from train.run_files import MetricsFile, ScalarWriter

logger = logging.getLogger(__name__)
CURVES_EVERY_SECONDS = 30.0


def seed_epoch(seed: int, epoch: int) -> None:
    """Seeds MXNet and numpy for an epoch from (seed, epoch) alone, so that a resumed run draws the same numbers."""
    mixed = zlib.crc32(f"{seed}/{epoch}".encode())
    mx.random.seed(mixed)
    np.random.seed(mixed)


class EpochEnd:
    """Callback for the end of an epoch, after validation where there is one."""

    def __init__(
        self,
        options: TrainOptions,
        module: DetectionModule,
        symbol_json: str,
        symbol_sha256: str,
        classes: tuple[str, ...],
        metric: LossMetric,
        kept_epochs: int,
        progress: Progress,
    ) -> None:
        """metric: the training metric; kept_epochs: of an earlier part of this run; progress: where the speed is
        known."""
        self.options, self.module, self.classes, self.metric = options, module, classes, metric
        self.symbol_json, self.symbol_sha256 = symbol_json, symbol_sha256
        self.progress = progress
        self.metrics = MetricsFile(options.prefix, kept_epochs)
        self.scalars = ScalarWriter(options.prefix) if options.tensorboard else None
        self.best_metric = best_metric(options)
        self.best: dict[str, Any] | None = None  # the record of the best epoch that has a checkpoint
        saved = list_epochs(options.prefix)
        for record in self.metrics.records:
            if record["epoch"] in saved and self._is_best(record):
                self.best = record
        self._kept_epochs, self._took_over = kept_epochs, False
        self._epoch_started = time.monotonic()
        self._curves_drawn = 0.0

    @property
    def is_saved(self) -> bool:
        """Whether there is a checkpoint of this very run to continue from."""
        return self._took_over and any(epoch > self._kept_epochs for epoch in list_epochs(self.options.prefix))

    def without_validation(self, epoch: int, *_: Any) -> None:
        """epoch_end_callback of fit."""
        self._end(epoch, {})

    def with_validation(self, param: Any) -> None:
        """eval_end_callback of fit."""
        self._end(param.epoch, finite_values(param.eval_metric.get_global_name_value()))

    def _end(self, epoch: int, validation: dict[str, float]) -> None:
        number = epoch + 1  # checkpoints are named by the number of epochs done
        if not self._took_over:
            self._take_over()
        record = self._record(number, validation)
        last = number >= self.options.end_epoch
        # The line comes before the checkpoint: a run that is killed between the two cuts it when it is resumed.
        self.metrics.append(record)
        if last or self._is_best(record) or number % self.options.save_every == 0:
            self._save(record)
            if self._is_best(record):
                self.best = record
                self._write_best()
                logger.info("checkpoint %d is the best so far: %s=%.4f", number, *self._best_score())
            self._prune()
        if self.scalars:
            self.scalars.write(record)
        self._draw_curves(last)
        if last:
            self._say_what_is_there(number)
        seed_epoch(self.options.seed, number)
        self._epoch_started = time.monotonic()

    def _say_what_is_there(self, number: int) -> None:
        prefix = self.options.prefix
        if self.best:
            logger.info("best: checkpoint %d with %s=%.4f", self.best["epoch"], *self._best_score())
        logger.info("newest: checkpoint %d; curves: %s-curves.png", number, prefix)
        logger.info("export it with: python deploy.py --prefix %s --output %s-model", prefix, prefix)

    def _take_over(self) -> None:
        """Drops what later epochs of an abandoned run have left, now that this run has something to show."""
        dropped = drop_after(self.options.prefix, self._kept_epochs)
        if dropped:
            logger.info("dropped the earlier checkpoints of epochs %s", ", ".join(map(str, dropped)))
        self._write_best()
        self._took_over = True

    def _is_best(self, record: dict[str, Any]) -> bool:
        score = record["validation"].get(self.best_metric)
        return score is not None and (self.best is None or score > self.best["validation"][self.best_metric])

    def _best_score(self) -> tuple[str, float]:
        """Name and value of the best epoch's score."""
        assert self.best is not None
        return self.best_metric, self.best["validation"][self.best_metric]

    def _write_best(self) -> None:
        if self.best:
            write_best(self.options.prefix, self.best["epoch"], *self._best_score())

    def _record(self, number: int, validation: dict[str, float]) -> dict[str, Any]:
        return {
            "epoch": number,
            "train": finite_values(self.metric.get_global_name_value()),
            "validation": validation,
            "learning_rate": self.module.learning_rate,
            "num_update": self.module.num_update,
            "seconds": round(time.monotonic() - self._epoch_started, 3),
            "images_per_second": round(self.progress.images_per_second, 2),
        }

    def _save(self, record: dict[str, Any]) -> None:
        options = self.options
        meta = {
            "num_update": record["num_update"],
            "learning_rate": record["learning_rate"],
            "scores": {"train": record["train"], "validation": record["validation"]},
            "seed": options.seed,
            "class_names": list(self.classes),
            **pixel_options(options),
            "rect": rect_multiple(options),
            "data_shape": list(input_size(options.data_shape)),
            "network": options.network,
            "options": network_options(options),
            "batch_size": options.batch_size,
            "symbol_sha256": self.symbol_sha256,
        }
        arg_params, aux_params = self.module.get_params()
        state = self.module.optimizer_state()
        save_checkpoint(options.prefix, record["epoch"], self.symbol_json, arg_params, aux_params, state, meta)

    def _prune(self) -> None:
        """Keeps the newest `keep` sets and the best one."""
        if not self.options.keep:
            return
        best = self.best["epoch"] if self.best else None
        for epoch in list_epochs(self.options.prefix)[: -self.options.keep]:
            if epoch != best:
                remove_checkpoint(self.options.prefix, epoch)

    def _draw_curves(self, last: bool) -> None:
        """Redraws the picture, not more often than every half minute: it costs a fraction of a second."""
        if last or time.monotonic() - self._curves_drawn > CURVES_EVERY_SECONDS:
            save_curves(self.metrics.records, Path(f"{self.options.prefix}-curves.png"))
            self._curves_drawn = time.monotonic()
