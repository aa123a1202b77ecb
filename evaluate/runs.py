"""What evaluate.py measures: a checkpoint, a model folder in an engine, or a file of detections, on one set."""

import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from common.errors import OptionError
from config.groups import RECT_MULTIPLES, DeviceOptions, ValidationOptions, metric_kinds
from dataset.left_out import left_out_limit
from engines.engine import AUTO, MXNET, Engine, EngineRequest, format_of, open_engine, usable_engines
from engines.preprocess import InputWriter, read_image
from evaluate.detection_files import (
    COCOIds,
    annotation_ids,
    foreign_ids,
    images_without,
    read_detections,
    record_ids,
)
from evaluate.detections import COCO, Evaluation, Results, frames_of, measure, to_image_pixels
from evaluate.options import EvaluateOptions, idle_options
from evaluate.sets import as_record, check_record, is_annotated, is_coco_file, read_truth, record_truth
from machine.cpu import usable_threads
from model.manifest import Manifest, check_model, is_model_folder, read_manifest
from symbol.registry import given_detection

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

DEFAULT_KINDS = ("voc07",)  # of a model folder and a file, which do not say how they were validated
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What was evaluated.

    Attributes:
        title: the line above the tables.
        head: the first keys of the JSON file.
        ids: of the images and classes in COCO files; None if none is written.
        use_difficult: whether difficult objects counted.
        latency: median seconds of the network for an image; None where they were not taken.
    """

    title: str
    head: dict[str, Any]
    evaluation: Evaluation
    ids: COCOIds | None
    use_difficult: bool
    latency: float | None = None


@dataclass(frozen=True)
class Measuring:
    """How a pass is measured, of a folder or file: kinds of metrics, IoU of VOC's rule, difficult objects."""

    kinds: tuple[str, ...]
    overlap: float = ValidationOptions.overlap
    use_difficult: bool = ValidationOptions.use_difficult


@dataclass
class _Clock:
    """Seconds of each run of a network."""

    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - begin)

    def of_image(self, batch_size: int) -> float:
        """The median of an image; the first run, with cold caches, does not count if there are others."""
        return statistics.median(self.seconds[1:] or self.seconds) / batch_size


def evaluated(options: EvaluateOptions, keep: bool) -> Run:
    """The run that the options name; keep: detections and objects of each image."""
    if options.detections:
        return _of_file(options)
    if is_model_folder(options.path):
        return _of_folder(options)
    return _of_checkpoint(options, keep)


def _of_file(options: EvaluateOptions) -> Run:
    how = measuring(options)
    check_curves(options, how.kinds)
    _warn(options, how.kinds)
    truth, ids = read_truth(options, options.list_path, options.coco_annotations)
    results = read_detections(options.detections, truth, ids)
    empty = images_without(results)
    if empty:
        logger.warning(
            "%s has nothing for %d of the %d images of %s, the first: %s",
            options.detections, len(empty), len(results.images), options.rec_path, empty[0],
        )  # fmt: skip
    doubt = foreign_ids(results)
    if doubt:
        logger.warning("%s: %s", options.detections, doubt)
    evaluation = _measured(results, how, 0.0)
    head = {"prefix": "", "epoch": None, "rec_path": options.rec_path, "detections": options.detections}
    return Run(f"{options.detections}, on {options.rec_path}", head, evaluation, ids, how.use_difficult)


def measuring(options: EvaluateOptions) -> Measuring:
    """How a model folder or a file is measured."""
    return Measuring(
        metric_kinds(options.metrics, options.voc07, DEFAULT_KINDS),
        Measuring.overlap if options.overlap is None else options.overlap,
        bool(options.use_difficult),
    )


def _measured(results: Results, how: Measuring, seconds: float) -> Evaluation:
    values = measure(results, how.kinds, how.overlap, how.use_difficult)
    return Evaluation(values, how.overlap, len(results.images), seconds, results)


def _warn(options: EvaluateOptions, kinds: tuple[str, ...], rect: int = 0) -> None:
    folder, annotated = is_model_folder(options.path), is_annotated(options.rec_path)
    for line in idle_options(options, kinds, rect, folder, annotated):
        logger.warning(line)


def _of_folder(options: EvaluateOptions) -> Run:
    manifest, how = checked_manifest(options), measuring(options)
    check_curves(options, how.kinds)
    _warn(options, how.kinds)
    with _record(options, manifest.class_names, manifest.bit_depth) as record:
        check_record(record, manifest, options.path)
        return _in_engine(options, record, options.engine, how)


def checked_manifest(options: EvaluateOptions) -> Manifest:
    """The manifest of the folder; OptionError where another model is expected."""
    known = read_manifest(options.path)
    check_model(
        options,
        options.path,
        network=known.network,
        class_names=known.class_names,
        data_shape=known.size,
        mean_pixels=known.mean,
    )
    return known


def _record(options: EvaluateOptions, names: Sequence[str], bit_depth: str) -> Any:
    workers = options.workers or usable_threads()
    return as_record(options, names, options.path, bit_depth, workers)


def _in_engine(options: EvaluateOptions, record: str, name: str, how: Measuring) -> Run:
    batch_size = options.batch_size or 1
    device = DeviceOptions(gpus=options.gpus, cpu=options.cpu)
    given = {key: value for key, value in given_detection(options).items() if value != ()}
    request = EngineRequest(options.path, options.epoch, device, batch_size, given)
    engine, started, clock = open_engine(name, request), time.monotonic(), _Clock()
    results = detect_record(engine, record, batch_size, options.num_batch, options.list_path, clock)
    evaluation = _measured(results, how, time.monotonic() - started)
    known = engine.manifest
    form = format_of(engine.name, known)
    head = {"prefix": options.path, "epoch": known.source.epoch, "rec_path": options.rec_path}
    head |= {"engine": engine.name, "format": form}
    title = f"{options.path}, {engine.name}, {form}, on {options.rec_path}"
    ids = _ids(options, record, [image.id for image in results.images], known.class_names)
    return Run(title, head, evaluation, ids, how.use_difficult, clock.of_image(batch_size))


def detect_record(
    engine: Engine,
    record: str,
    batch_size: int,
    num_batch: int | None = None,
    list_path: str = "",
    clock: "_Clock | None" = None,
) -> Results:
    """What an engine finds in the images of a record, or in its first num_batch batches.

    All that the network gives is kept, whatever its score; images are read and resized as Detector does it.
    """
    from dataset.recordio import RecordReader

    clock = clock or _Clock()
    names, images = record_truth(record, engine.manifest.class_names, list_path)
    reader, writer, found = RecordReader(record), InputWriter(engine.manifest), []
    images = images[: num_batch * batch_size] if num_batch else images
    for begin in tqdm(range(0, len(images), batch_size), engine.name, disable=None, unit=" batches", leave=False):
        part = range(begin, min(begin + batch_size, len(images)))
        data = writer.batch(len(part), batch_size)
        pixels = [read_image(reader.record(k).image, reader.where(k)) for k in part]
        views = np.stack([writer.write(one, row) for one, row in zip(pixels, data, strict=False)])
        with clock():
            det = engine.run(data)
        frames = frames_of(views, engine.manifest.size)
        found += [_located(rows, frame) for rows, frame in zip(det, frames, strict=False)]
    located = [replace(image, found=rows) for image, rows in zip(images, found, strict=True)]
    return Results(names, tuple(located))


def _located(rows: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Rows (N, 6) of det as (m, 6) float64 in pixels of the image, those that are no detection left out."""
    rows = rows[rows[:, 0] >= 0].astype(np.float64)
    rows[:, 2:] = to_image_pixels(rows[:, 2:], np.tile(frame, (len(rows), 1)))
    return rows


def _ids(options: EvaluateOptions, record: str, keys: Sequence[int], class_names: Sequence[str]) -> COCOIds:
    """The ids of these records and of the classes in COCO files; those of a COCO file are its own."""
    own = options.rec_path if is_coco_file(options.rec_path) else ""
    path = options.coco_annotations or own
    return annotation_ids(keys, class_names, record, path) if path else record_ids(keys, len(class_names), record)


def _of_checkpoint(options: EvaluateOptions, keep: bool) -> Run:
    if options.engine not in (AUTO, MXNET):
        open_engine(options.engine, EngineRequest(options.path, options.epoch))  # says what is missing
    from evaluate.evaluate_net import evaluate_net
    from machine.runtime import contexts
    from model.manifest import check_checkpoint

    checkpoint = _checkpoint(options)
    check_checkpoint(options, checkpoint)
    meta = checkpoint.meta
    kinds = metric_kinds(options.metrics, options.voc07, meta.metrics)
    rect = _rect(options, meta.rect)
    check_curves(options, kinds)
    _warn(options, kinds, rect)
    with _record(options, meta.class_names, meta.bit_depth) as record:
        if options.coco_annotations:  # report what does not fit before the pass
            _ids(options, record, _keys(record), meta.class_names)
        evaluation = evaluate_net(
            checkpoint,
            record,
            contexts(options.gpus, options.cpu, options.cpus),
            batch_size=options.batch_size,
            workers=options.workers,
            data_engine=options.data_engine,
            num_batch=options.num_batch,
            list_path=options.list_path,
            rect=rect,
            left_out=left_out_limit(options.bad_records),
            overlap=options.overlap,
            use_difficult=options.use_difficult,
            metrics=kinds,
            keep_rows=keep,
            **given_detection(options),
        )
        keys = [image.id for image in evaluation.found.images] if evaluation.found else []
        ids = _ids(options, record, keys, meta.class_names) if keep else None
    use_difficult = meta.use_difficult if options.use_difficult is None else options.use_difficult
    head = {"prefix": options.path, "epoch": checkpoint.epoch, "rec_path": options.rec_path}
    title = f"{options.path}, epoch {checkpoint.epoch}, on {options.rec_path}"
    return Run(title, head, evaluation, ids, use_difficult)


def _keys(record: str) -> list[int]:
    from dataset.recordio import RecordReader

    return [int(key) for key in RecordReader(record).keys]


def check_curves(options: EvaluateOptions, kinds: tuple[str, ...]) -> None:
    """OptionError for curves that no metric has."""
    if options.curves and kinds == (COCO,):
        raise OptionError("--curves draws the curves of VOC's rule: add voc07 or voc to --metrics")


def _checkpoint(options: EvaluateOptions) -> "Checkpoint":
    """The checkpoint that is named, with or without our .json."""
    from dataset.sidecar import read_sidecar
    from model.checkpoint import load_checkpoint, plain_epoch
    from model.weights.plain import load_plain

    plain = plain_epoch(options.path, options.epoch)
    if plain is None:
        return load_checkpoint(options.path, options.epoch)
    is_record = Path(options.rec_path).is_file() and not is_annotated(options.rec_path)
    sidecar = read_sidecar(options.rec_path) if is_record else None
    checkpoint = load_plain(options.path, plain, options, sidecar.class_names if sidecar else ())
    return replace(checkpoint, meta=replace(checkpoint.meta, bit_depth=sidecar.bit_depth if sidecar else ""))


def _rect(options: EvaluateOptions, trained: int) -> int:
    """What sides of inputs are multiples of, 0 = one size; `trained` is what the training's validation had."""
    wanted = bool(trained) if options.rect_val is None else options.rect_val
    return (options.rect_multiple or trained or RECT_MULTIPLES[0]) if wanted else 0


def engine_runs(options: EvaluateOptions) -> list[Run]:
    """The model folder in every engine that is installed and has a file in it, mxnet first if it is there."""
    if not is_model_folder(options.path):
        raise OptionError(
            f"--all-engines: {options.path} is no model folder; export the checkpoint with deploy.py --onnx"
        )
    manifest, how = checked_manifest(options), measuring(options)
    how = replace(how, kinds=tuple(dict.fromkeys((*how.kinds, COCO))))
    _warn(options, how.kinds)
    with _record(options, manifest.class_names, manifest.bit_depth) as record:
        check_record(record, manifest, options.path)
        return [_in_engine(options, record, name, how) for name in usable_engines(manifest, options.path)]
