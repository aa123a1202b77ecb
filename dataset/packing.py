"""Annotated images -> NAME.lst, .rec, .idx, .json: images checked in parallel, their bytes stored untouched."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.files import file_sha256
from common.sizes import Size
from common.version import __version__
from dataset.image_check import MAX_BYTES, ImageInfo, check_image
from dataset.imdb import AnnotatedImage, Imdb
from dataset.labels import pack_label, validate
from dataset.recordio import RecordWriter, pack
from dataset.sidecar import Sidecar, sidecar_bytes, sidecar_path
from machine.signals import held

SHOWN = 10  # lines of a list in an error or a report
_CHUNK = 8  # images a worker takes at a time
_AHEAD = 4  # chunks in flight for each worker: bounds the memory

Progress = Callable[[Iterable["Checked"], int], Iterable["Checked"]]
Chunk = list["Checked"]


@dataclass(frozen=True)
class Checked:
    """An image with its bytes and what its decoding showed, or the reason why it cannot be used."""

    image: AnnotatedImage
    content: bytes = b""
    info: ImageInfo | None = None
    reason: str = ""


@dataclass
class Report:
    """What was packed and what was not: lists of lines for the user; empty = images left out for want of objects;
    images = those packed, in their order, with the objects that they have in the record."""

    class_names: tuple[str, ...]
    counts: list[int] = field(default_factory=list)
    objects_per_class: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    dropped: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    rotated: list[str] = field(default_factory=list)
    empty: int = 0
    images: list[AnnotatedImage] = field(default_factory=list)


def pack_dataset(
    imdb: Imdb,
    target: Path,
    *,
    seed: int | None,
    workers: int,
    skip_bad: bool = False,
    keep_empty: bool = True,
    source: str = "",
    progress: Progress = lambda images, total: images,
) -> Report:
    """Packs the images of imdb, in an order shuffled by seed (None: as they come), ids counting from 0 in that order.

    target is the .lst; the other files go beside it. Every image is decoded once, completely. A damaged or missing one
    raises DataError with the list of all such images, after the last; with skip_bad it is left out. Images annotated
    without objects are left out unless keep_empty. Files appear at the
    end, the sidecar last; an error or an interruption leaves those of an earlier run as they were. The result depends
    neither on `workers` nor on timing.
    """
    images = _in_order([image for image in imdb.images if keep_empty or len(image.objects)], seed)
    report = Report(imdb.class_names, dropped=list(imdb.dropped), empty=len(imdb.images) - len(images))
    report.objects_per_class = np.zeros(len(imdb.class_names), np.int64)
    lines: list[str] = []
    rec = target.with_suffix(".rec")
    with RecordWriter(rec) as writer, _checked(images, workers) as results:
        for checked in progress(results, len(images)):
            if checked.reason:
                report.bad.append(f"{checked.image.name}: {checked.reason}")
            elif skip_bad or not report.bad:
                lines.append(_add(writer, len(lines), checked, report))
        _refuse(report, skip_bad, len(lines))
        writer.add_file(target, "".join(lines).encode("utf-8"))
        writer.add_file(sidecar_path(rec), sidecar_bytes(_sidecar(report, writer.finish(), source)))
    return report


def _in_order(images: Sequence[AnnotatedImage], seed: int | None) -> list[AnnotatedImage]:
    if seed is None:
        return list(images)
    return [images[k] for k in np.random.default_rng(seed).permutation(len(images))]


def _add(writer: RecordWriter, index: int, checked: Checked, report: Report) -> str:
    """Writes one record, counts it, and returns its line for the .lst."""
    image, info = checked.image, checked.info
    assert info is not None  # only bad images have none
    objects, kept = image.normalised(info.size)
    validate(objects, len(report.class_names), image.name)
    label = pack_label(objects)
    writer.write(index, pack(label, checked.content, index))
    report.images.append(replace(image, objects=image.objects[kept]))
    report.counts.append(len(objects))
    report.objects_per_class += np.bincount(objects[:, 0].astype(int), minlength=len(report.class_names))
    report.dropped += [
        f"{image.name}: object {row} [{' '.join(f'{v:g}' for v in image.objects[row, 1:5])}] lies outside the image"
        for row in np.flatnonzero(~kept)
    ]
    if image.size not in (None, info.size):
        report.resized.append(f"{image.name}: {_by(image.size)} annotated, {_by(info.size)} decoded")
    if info.orientation != 1:
        report.rotated.append(image.name)
    return "\t".join([str(index), *(f"{value:.9g}" for value in label), image.name]) + "\n"


def _by(size: Size | None) -> str:
    return f"{size[1]} x {size[0]}" if size else "unknown"


def _refuse(report: Report, skip_bad: bool, packed: int) -> None:
    listed = "; ".join(shortened(report.bad))
    if report.bad and not skip_bad:
        raise DataError(f"images that cannot be used: {len(report.bad)} (mend or --skip-bad them): {listed}")
    if packed == 0 and not report.bad:
        raise DataError("no image has objects, nothing was written; --true-negative keeps images without objects")
    if packed == 0:
        raise DataError(f"no image can be used, nothing was written: {listed}")


def shortened(lines: Sequence[str]) -> list[str]:
    """The first ten lines and how many more there are."""
    rest = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"... and {rest} more"] if rest > 0 else [])]


def _sidecar(report: Report, rec: Path, source: str) -> Sidecar:
    """The sidecar of what was packed; rec: the complete .rec, under whatever name."""
    most = max(report.counts)
    return Sidecar(
        class_names=report.class_names,
        num_images=len(report.counts),
        num_objects=sum(report.counts),
        max_objects=most,
        objects_per_class=tuple(report.objects_per_class.tolist()),
        label_width=pack_label(np.zeros((most, 6))).size,
        source=source,
        sha256=file_sha256(rec),
        size=rec.stat().st_size,
        tool_version=__version__,
    )


def _check(image: AnnotatedImage) -> Checked:
    """Reads and decodes one image, in a worker."""
    try:
        if os.path.getsize(image.path) > MAX_BYTES:
            return Checked(image, reason=f"larger than {MAX_BYTES >> 20} MiB")
        content = image.path.read_bytes()
        info = check_image(content)
    except FileNotFoundError:
        return Checked(image, reason="the image is missing")
    except OSError as error:
        return Checked(image, reason=f"cannot be read ({error.strerror})")
    except DataError as error:
        return Checked(image, reason=str(error))
    if info.orientation >= 5 and image.size == info.size[::-1] != info.size:
        return Checked(
            image, reason=f"annotated as rotated by its EXIF orientation {info.orientation}; store it upright"
        )
    return Checked(image, content, info)


def _check_chunk(images: list[AnnotatedImage]) -> Chunk:
    return [_check(image) for image in images]


@contextmanager
def _checked(images: list[AnnotatedImage], workers: int) -> Iterator[Iterator[Checked]]:
    """The checked images in order, from `workers` processes; 1, or no image at all, works in this one."""
    chunks = [images[k : k + _CHUNK] for k in range(0, len(images), _CHUNK)]
    if workers == 1 or not chunks:
        yield (checked for chunk in chunks for checked in _check_chunk(chunk))
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(chunks)), context, _start_worker)
    try:
        yield (checked for chunk in _ahead(pool, chunks, _AHEAD * workers) for checked in chunk)
    except BrokenProcessPool as error:
        raise DataError("a worker process died, perhaps for lack of memory; try fewer with --num-thread") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leaves Ctrl-C to the main process, and ends with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _ahead(pool: ProcessPoolExecutor, chunks: list[list[AnnotatedImage]], limit: int) -> Iterator[Chunk]:
    """pool.map with at most `limit` chunks submitted and not yet consumed."""
    waiting: deque[Future[Chunk]] = deque()
    for chunk in chunks:
        if len(waiting) == limit:
            yield _result(waiting)
        with held():
            waiting.append(pool.submit(_check_chunk, chunk))
    while waiting:
        yield _result(waiting)


def _result(waiting: deque[Future[Chunk]]) -> Chunk:
    with held():
        return waiting.popleft().result()
