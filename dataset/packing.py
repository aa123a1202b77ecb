"""Annotated images -> NAME.lst, .rec, .idx, .json: images checked in parallel; JPEG and PNG of 8 bits are
stored untouched, others as PNG."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from common.errors import DataError
from dataset.fitting import DEFAULT_RULES, Fitted, Rules, fit_objects
from dataset.image_check import MANY_OUTSIDE, ImageInfo, packed_image
from dataset.image_pool import in_order, or_reason, process_pool, read_image, refuse_unusable
from dataset.imdb import AnnotatedImage, Imdb
from dataset.labels import pack_label, validate
from dataset.recordio import RecordWriter, pack
from dataset.sidecar import describe_record, image_digest, sidecar_bytes, sidecar_path

Progress = Callable[[Iterable["Checked"], int], Iterable["Checked"]]


@dataclass(frozen=True)
class Checked:
    """An image with its bytes, what its decoding showed, and its objects on it, or the reason why it cannot be used."""

    image: AnnotatedImage
    content: bytes = b""
    info: ImageInfo | None = None
    fitted: Fitted | None = None
    digest: str = ""
    reason: str = ""


@dataclass
class Report:
    """What was packed and what was not: lists of lines for the user; empty = images left out for want of objects;
    images = those packed, in their order, with the objects that they have in the record.

    Lists: dropped boxes; bad images; images of another size than annotated, whose boxes were scaled; rotated ones;
    boxes far outside, thin (less than two pixels), there twice, nearly twice; images that lost all their boxes.
    outside: images of which a window clips many values. clipped: boxes. digests: of the images packed.
    """

    class_names: tuple[str, ...]
    counts: list[int] = field(default_factory=list)
    objects_per_class: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    dropped: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    scaled: list[str] = field(default_factory=list)
    rotated: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    far: list[str] = field(default_factory=list)
    thin: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    alike: list[str] = field(default_factory=list)
    emptied: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    clipped: int = 0
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
    rules: Rules = DEFAULT_RULES,
    source: str = "",
    bit_depth: str = "",
    progress: Progress = lambda images, total: images,
) -> Report:
    """Packs the images of imdb, in an order shuffled by seed (None: as they come), ids counting from 0 in that order.

    target is the .lst; the other files go beside it. Every image is decoded once, completely. A damaged or missing one
    raises DataError with the list of all such images, after the last; with skip_bad it is left out. Images without
    objects are left out unless keep_empty. rules: of fit_objects; bit_depth: of packed_image. Files appear at the end,
    the sidecar last; an error or an interruption leaves those of an earlier run as they were. The result depends
    neither on `workers` nor on timing.
    """
    if not imdb.class_names:
        raise DataError("no annotation names a class, nothing was written; name them with --class-names")
    images = _shuffled([image for image in imdb.images if keep_empty or len(image.objects)], seed)
    report = Report(imdb.class_names, dropped=list(imdb.dropped), empty=len(imdb.images) - len(images))
    report.objects_per_class = np.zeros(len(imdb.class_names), np.int64)
    lines: list[str] = []
    rec = target.with_suffix(".rec")
    with (
        RecordWriter(rec) as writer,
        _checked(images, workers, partial(_check, rules=rules, bit_depth=bit_depth)) as results,
    ):
        for checked in progress(results, len(images)):
            if checked.reason:
                report.bad.append(f"{checked.image.name}: {checked.reason}")
            elif skip_bad or not report.bad:
                lines += _add(writer, len(lines), checked, report, keep_empty)
        if not lines and not report.bad:
            raise DataError("no image has objects, nothing was written; --true-negative keeps images without objects")
        refuse_unusable(report.bad, skip_bad, len(lines))
        writer.add_file(target, "".join(lines).encode("utf-8"))
        width = pack_label(np.zeros((max(report.counts), 6))).size
        sidecar = describe_record(
            writer.finish(),
            report.class_names,
            report.counts,
            report.objects_per_class,
            width,
            source,
            report.digests,
            bit_depth,
        )
        writer.add_file(sidecar_path(rec), sidecar_bytes(sidecar))
    return report


def _shuffled(images: Sequence[AnnotatedImage], seed: int | None) -> list[AnnotatedImage]:
    if seed is None:
        return list(images)
    return [images[k] for k in np.random.default_rng(seed).permutation(len(images))]


def _add(writer: RecordWriter, index: int, checked: Checked, report: Report, keep_empty: bool) -> list[str]:
    """Writes one record, counts it, and returns its line for the .lst; none if it has lost its objects and images
    without are not kept."""
    image, info, fitted = checked.image, checked.info, checked.fitted
    assert info is not None  # only bad images have none
    assert fitted is not None
    objects = fitted.objects
    for name in ("dropped", "scaled", "far", "thin", "twice", "alike"):
        getattr(report, name).extend(getattr(fitted, name))
    report.clipped += fitted.clipped
    if not len(objects) and not keep_empty:
        report.empty += 1
        return []
    if not len(objects) and (fitted.dropped or image.dropped):
        report.emptied.append(image.name)
    validate(objects, len(report.class_names), image.name)
    label = pack_label(objects)
    writer.write(index, pack(label, checked.content, index))
    report.images.append(_in_pixels(image, fitted))
    report.counts.append(len(objects))
    report.digests.append(checked.digest)
    report.objects_per_class += np.bincount(objects[:, 0].astype(int), minlength=len(report.class_names))
    if info.orientation != 1:
        report.rotated.append(image.name)
    if info.outside > MANY_OUTSIDE:
        report.outside.append(f"{image.name}: {info.outside:.0%}")
    return ["\t".join([str(index), *(f"{value:.9g}" for value in label), image.name]) + "\n"]


def _in_pixels(image: AnnotatedImage, fitted: Fitted) -> AnnotatedImage:
    """The image with the objects that are packed, in pixels of the image as it is stored."""
    image = image.only(fitted.rows)
    if fitted.factor is None:
        return image
    scale = np.array([1, *fitted.factor, *fitted.factor, 1])
    return replace(image, objects=image.objects * scale)


def _checked(
    images: list[AnnotatedImage], workers: int, check: Callable[[AnnotatedImage], Checked]
) -> AbstractContextManager[Iterator[Checked]]:
    """The checked images in order, from `workers` processes; 1, or no image at all, works in this one."""
    if workers == 1 or not images:
        return nullcontext(map(check, images))
    return in_order(process_pool(workers), workers, check, images)


def _check(image: AnnotatedImage, rules: Rules, bit_depth: str) -> Checked:
    return or_reason(lambda: _read_and_check(image, rules, bit_depth), lambda reason: Checked(image, reason=reason))


def _read_and_check(image: AnnotatedImage, rules: Rules, bit_depth: str) -> Checked:
    """Reads and decodes one image, in a worker; OSError, or DataError with the reason alone."""
    content, info = packed_image(read_image(image.path), bit_depth)
    return Checked(image, content, info, fit_objects(image, info, rules), image_digest(content))
