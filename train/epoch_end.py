"""The end of an epoch: metrics line, checkpoint, best and old ones, curves, TensorBoard, the next epoch's seed."""

import logging
import shlex
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from config.groups import best_metric, pixel_options
from config.options import to_mapping
from evaluate.scoring import served_rows
from evaluate.voc_eval import VOCResult, best_f1
from machine.command import SignalRequests, held
from machine.runtime import mx
from model.checkpoint import drop_after, list_epochs, write_best
from train.callbacks import finite_values
from train.curves import BatchPicture, LiveCurves
from train.metric import LossMetric
from train.pauses import Pauses, drop_paused
from train.progress import Progress
from train.run_files import MetricsFile, write_results
from train.saving import CheckpointWriter, SavePlan, Snapshots
from train.tensorboard import TensorBoard
from train.validation_report import ValidationReport

logger = logging.getLogger(__name__)


def seed_epoch(seed: int, epoch: int) -> None:
    """Seeds MXNet and numpy for an epoch from (seed, epoch) alone, so that a resumed run draws the same numbers."""
    mixed = zlib.crc32(f"{seed}/{epoch}".encode())
    mx.random.seed(mixed)
    np.random.seed(mixed)


class RunEnds(Exception):  # noqa: N818 - no error
    """Leaves fit before its last epoch."""


class EpochEnd:
    """Callback for the end of an epoch, after validation where there is one."""

    def __init__(
        self,
        writer: CheckpointWriter,
        plan: SavePlan,
        metric: LossMetric,
        kept_epochs: int,
        progress: Progress,
        validates: Callable[[int], bool],
        requests: SignalRequests,
    ) -> None:
        """metric: the training metric; kept_epochs: of an earlier part of this run; progress: where the speed is known.

        validates: whether the epoch of this number, from 0, is validated. requests: what signals ask for.
        """
        self.writer, self.plan, self.metric, self.progress = writer, plan, metric, progress
        self.module = writer.module
        self.options = options = writer.options
        self.validates = validates
        self.metrics = MetricsFile(options.output.prefix, kept_epochs)
        _try(self.metrics.move_damaged)
        state = progress.state if options.output.live else None
        prefix, records = options.output.prefix, self.metrics.records
        self.curves = LiveCurves(prefix, metric, self.module, records, progress.batches, state)
        self.batches = BatchPicture(prefix, writer.classes, pixel_options(options.input))
        self.module.watch_validation = self._watch_validation
        self.report = ValidationReport(options) if options.output.report else None
        self.module.served = [] if self.report else None
        self.board = self._open_board() if options.output.tensorboard else None
        self.best_metric = best_metric(options.validation)
        self.best: dict[str, Any] | None = None  # the record of the best epoch that has a checkpoint
        saved = list_epochs(options.output.prefix)
        for record in self.metrics.records:
            if record["epoch"] in saved and record["epoch"] > writer.begun and self._is_best(record):
                self.best = record
        self._kept_epochs, self._took_over, self._told, self._is_over = kept_epochs, False, False, False
        self.pauses = Pauses(writer, metric, requests, self._take_over)
        self._epoch_started = time.monotonic()

    @property
    def is_saved(self) -> bool:
        """Whether there is a checkpoint of this very run to continue from."""
        newer = (epoch > self._kept_epochs for epoch in list_epochs(self.options.output.prefix))
        return self.pauses.is_saved or (self._took_over and any(newer))

    def without_validation(self, epoch: int, *_: Any) -> None:
        """epoch_end_callback of fit."""
        if not self.validates(epoch):
            self._end(epoch, {}, {})

    def with_validation(self, param: Any) -> None:
        """eval_end_callback of fit."""
        values = finite_values(param.eval_metric.get_global_name_value())
        if self.report and self.module.served:
            first = next(iter(getattr(param.eval_metric, "parts", {"": param.eval_metric}).values()))
            self.report.renew(param.epoch + 1, *served_rows(first, self.module.served))
        self._end(param.epoch, values, _operating_point(param.eval_metric))
        compared = param.eval_metric.take_compared()
        if self.best_metric in compared:
            text = "without looking at the images, the most usual box of each class: Validation-%s=%.4f"
            logger.info(text, self.best_metric, compared[self.best_metric])

    def _end(self, epoch: int, validation: dict[str, float], operating_point: dict[str, float]) -> None:
        number = epoch + 1  # checkpoints are named by the number of epochs done
        self.module.average_over_ranks()
        record = self._record(number, validation) | ({"best_f1": operating_point} if operating_point else {})
        if self.validates(epoch) and self.module.validation_losses:
            record["validation_loss"] = observe_losses(self.writer, self.module.validation_losses)
        gives_up = self.validates(epoch) and is_given_up(self.writer, number, validation, self.best_metric)
        last = gives_up or number >= self.options.schedule.end_epoch
        # The line comes before the checkpoint: a run that is killed between the two cuts it when it is resumed.
        _try(self.metrics.append, record)
        _try(write_results, self.metrics.records, Path(f"{self.options.output.prefix}-results.txt"))
        is_best = self._is_best(record)
        self._warn_without_score(epoch, record)
        is_due = self.plan.is_due(number, record["num_update"], is_best, last, self.best is not None)
        if is_due:
            with held():  # a run that a signal ends knows whether it has a checkpoint, and the best is noted
                self.writer.save(self.options.output.prefix, number, record)
                self._take_over(number)
                drop_paused(self.options.output.prefix)
                if is_best:
                    self.best = record
                    self._write_best()
            if is_best:
                logger.info("checkpoint %d is the best so far: %s=%.4f", number, *self._best_score())
            self.plan.prune(self.options.output.prefix, self.best["epoch"] if self.best else None)
        if self.board:
            self.board.epoch(record)
        self._is_over = gives_up or number >= self.progress.end_epoch
        self.curves.draw(force=last or len(self.metrics.records) == 1, is_over=self._is_over)
        if gives_up:  # before fit has told the scores
            for name, value in validation.items():
                logger.info("Epoch[%d] Validation-%s=%f", number, name, value)
            raise RunEnds
        if not self._is_over:
            self.pauses.at_epoch_end(number, is_due)
        seed_epoch(self.options.data.seed, number)
        self._epoch_started = time.monotonic()

    def _open_board(self) -> TensorBoard:
        output = self.options.output
        board = TensorBoard(
            output.prefix,
            self.metric,
            self.module,
            self.progress.batches,
            output.frequent,
            self.writer.classes,
            pixel_options(self.options.input),
        )
        board.options(to_mapping(self.options))
        return board

    def _watch_validation(self, batch: mx.io.DataBatch, objects: np.ndarray, detections: np.ndarray) -> None:
        """Draws the first batch of a validation."""
        self.batches.validation(batch)
        if self.board:
            self.board.validation(batch, objects, detections)

    def callbacks(self, num_update: int) -> list[Callable[[Any], None]]:
        """Batch-end callbacks that save, tell, draw and write while an epoch goes on; num_update: when the run
        started."""
        board = [self.board] if self.board else []
        snapshots = Snapshots(self.writer, self.metric, num_update)
        return [self.pauses, self.progress, snapshots, self.curves, self.batches, *board]

    def close(self) -> None:
        """Takes the terminal's line away."""
        self.progress.close()

    def log_summary(self) -> None:
        """After the last epoch of the run: its best and its newest checkpoint, and what to do with them."""
        number, prefix = self.metrics.records[-1]["epoch"], self.options.output.prefix
        if self.report:
            self.report.finish()
        if not self._is_over:
            return
        if self.best:
            logger.info("best: checkpoint %d with %s=%.4f", self.best["epoch"], *self._best_score())
        logger.info("newest: checkpoint %d; curves: %s-curves.png", number, prefix)
        if self.report:
            logger.info("what the last validation got wrong: %s", self.report.folder)
        if self.batches.is_written:
            logger.info("what the network was given, the first batches: %s", self.batches.path)
        best = ["--epoch", "best"] if self.best and self.best["epoch"] != number else []
        command = ["python", "deploy.py", "--prefix", prefix, *best, "--output", f"{prefix}-model"]
        logger.info("export %s with: %s", "the best" if best else "it", shlex.join(command))

    def _take_over(self, saved: int | None = None) -> None:
        """Drops what later epochs of an abandoned run have left, once, now that this run has saved the set `saved`, or
        in mid-epoch."""
        if self._took_over:
            return
        dropped = drop_after(self.options.output.prefix, self._kept_epochs, saved)
        if dropped:
            logger.info("dropped the earlier checkpoints of epochs %s", ", ".join(map(str, dropped)))
        self._write_best()
        self._took_over = True

    def _is_best(self, record: dict[str, Any]) -> bool:
        score = record["validation"].get(self.best_metric)
        return score is not None and (self.best is None or score > self.best["validation"][self.best_metric])

    def _warn_without_score(self, epoch: int, record: dict[str, Any]) -> None:
        """Once, that a validation gave the metric of the best checkpoint no value."""
        if self.validates(epoch) and self.best_metric not in record["validation"] and not self._told:
            logger.warning(
                "the validation has nothing to measure %s by: no checkpoint becomes the best one; change --best-metric "
                "or --val-path",
                self.best_metric,
            )
            self._told = True

    def _best_score(self) -> tuple[str, float]:
        """Name and value of the best epoch's score."""
        assert self.best is not None
        return self.best_metric, self.best["validation"][self.best_metric]

    def _write_best(self) -> None:
        if self.best:
            write_best(self.options.output.prefix, self.best["epoch"], *self._best_score())

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


def observe_losses(writer: CheckpointWriter, metric: LossMetric) -> dict[str, float]:
    """The losses of an epoch's validation, which the schedule takes in."""
    pairs = metric.get_global_name_value()
    if writer.plateau:
        writer.plateau.observe(sum(value for _, value in pairs))
    return finite_values(pairs)


def is_given_up(writer: CheckpointWriter, number: int, validation: dict[str, float], best_metric: str) -> bool:
    """Whether --patience ends the run with the epoch of this number, from 1, which was validated; that is told."""
    patience = writer.patience
    if not patience.epochs:
        return False
    patience.observe(number, validation.get(best_metric))
    if patience.is_over:
        best, since = patience.best, patience.best_epoch
        text = "the run ends with epoch %d: %s has not been above the %.4f of epoch %d since (--patience %d)"
        logger.info(text, number, best_metric, best, since, patience.epochs)
    return patience.is_over


def _try(write: Callable[..., None], *arguments: Any) -> None:
    """Writes a file that training can do without; a failure is a warning."""
    try:
        write(*arguments)
    except OSError as error:
        logger.warning("%s: cannot be written (%s); training goes on", error.filename, error.strerror)


def _operating_point(metric: mx.metric.EvalMetric) -> dict[str, float]:
    """Precision and recall by the metric's VOC rule, {} where it has none."""
    parts = getattr(metric, "parts", {"": metric}).values()
    results = (part.result() for part in parts if hasattr(part, "result"))
    return next((best_f1(result) for result in results if isinstance(result, VOCResult)), {})
