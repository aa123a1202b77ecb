"""Packs annotated images into RecordIO.

python tools/prepare_dataset.py --dataset pascal --root data/VOCdevkit --year 2007,2012 --set trainval \\
    --target data/train.lst
python tools/prepare_dataset.py --dataset coco --root data/coco --set train2017 --target data/train.lst
python tools/prepare_dataset.py --dataset yolo --root data/mine/mine.data --set train --target data/train.lst
python tools/prepare_dataset.py --root data/mine --split 0.81,0.09,0.1 --target data/mine.lst
python tools/prepare_dataset.py --dataset pascal --root data/VOCdevkit --class-names car,person --only-class-names
"""

import importlib
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

if not __package__:
    importlib.import_module("as_module")

from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from common.errors import DataError, OptionError
from common.files import check_output_file, write_all
from config.command_line import parse_options
from config.options import option
from dataset.annotation_list import listed_path, write_annotation_list
from dataset.class_names import choose_classes, read_class_names, similar_names
from dataset.fitting import DUPLICATES, TRUST, Rules
from dataset.imdb import Imdb, group_of, shortened, split_dataset
from dataset.layouts import KINDS
from dataset.packing import Report, pack_dataset
from dataset.sources import AUTO, Source, Wanted, read_sources
from dataset.transforms import checked_bit_depth
from dataset.voc_folders import image_sets
from dataset.yolo import POLYGONS
from machine.command import exit_on_sigterm, raise_lost_signal, run_command
from machine.cpu import usable_threads

EXAMPLE = "python tools/prepare_dataset.py --dataset pascal --root data/VOCdevkit --year 2007 --target data/train.lst"


@dataclass(frozen=True)
class PrepareOptions:
    """What to pack and where to; the flags of the classic command line and a few more."""

    dataset: str = option(
        AUTO, "kind of annotations; auto looks at the folder and says what it is", "annotations", choices=(AUTO, *KINDS)
    )
    root: str = option(
        "data/VOCdevkit",
        "pascal: VOCdevkit with VOC2007/..., or a folder with XML files and images (Annotations/ and JPEGImages/, "
        "other names, side by side); coco: folder with annotations/instances_SET.json and SET/ or images/SET/, or a "
        "JSON; yolo: folder with images/ and labels/, a list of images (.txt), a .data file, or a data.yaml; list: a "
        "file of lines `path x1,y1,x2,y2,class ...`; csv; labelme: folder of its JSON files. Several roots with commas "
        "between them are packed together",
        "annotations",
    )
    annotations: str = option("", "folder of the annotations, where it is no usual one of --root", "annotations")
    images: str = option("", "folder of the images, where it is no usual one of --root", "annotations")
    year: tuple[str, ...] = option((), "years of a VOCdevkit; none means 2007,2012; coco has none", "annotations")
    set: tuple[str, ...] = option(
        (),
        "image sets. pascal: one for all years, or one for each; none means trainval, or every image of a bare folder "
        "without ImageSets/. coco: one or several, packed together; none means train2017, or train of what is there. "
        "yolo: folders in images/, none means all; of a .data file train (the default) or valid; of a data.yaml "
        "train, val, test. list: none",
        "annotations",
    )
    class_names: tuple[str, ...] = option(
        (),
        "names in the order of the ids: a list, a file with one a line, a data.yaml, or the .json of a record packed "
        "before; none means those of the COCO file by category id, those beside YOLO's labels, the 20 of VOC if they "
        "cover the annotations, or the names found, sorted",
        "annotations",
    )
    only_class_names: bool = option(
        False,
        "leave out objects of classes that are not among --class-names, and count them, instead of refusing; yolo and "
        "list: --class-names then chooses among the names in the .names, instead of naming the ids anew",
        "annotations",
    )
    pixel_origin: int = option(
        1,
        "1: coordinates count pixels from 1 and include both ends (VOC); 0: they are edges measured from 0 (labelImg, "
        "CVAT). coco, yolo and labelme are always 0",
        "annotations",
        choices=(0, 1),
    )
    trust_size: str | None = option(
        None,
        "whose pixels the boxes are in, where an image has not the size that its annotation says: image or annotation; "
        "none: the annotation's if the proportions are the same, else the image is refused",
        "annotations",
        choices=TRUST,
    )
    duplicates: str = option(
        "keep", "objects with the class and the box of another one: keep or drop", "annotations", choices=DUPLICATES
    )
    allow_outside: bool = option(
        False, "yolo: lists may name images out of their folder and the one above, by `..` or links", "annotations"
    )
    polygons: str = option(
        "refuse", "yolo: what becomes of polygons; box takes the box around each", "annotations", choices=POLYGONS
    )
    bit_depth: str = option(
        "",
        "how pixels of more than 8 bits become 8: window:LOW,HIGH maps LOW to 0 and HIGH to 255, percentile:P,Q takes "
        "LOW and HIGH from the values of each image; train.py, deploy.py and detection go by it, too; none refuses "
        "images of more than 8 bits",
        "annotations",
    )
    true_negative: bool = option(True, "keep images without objects, to learn from them what is none", "annotations")
    split: tuple[float, ...] = option(
        (),
        "shares of train, validation and, perhaps, test, as 0.81,0.09,0.1: writes NAME_train, NAME_val and NAME_test, "
        "drawn by --seed from all annotations unless --set is given",
        "output",
        minimum=0.0,
        maximum=1.0,
    )
    group_by: str = option(
        "",
        "with --split: a regular expression; images whose names give the same text (that of its brackets, where it has "
        "any) stay together in one part, as the frames of a film by '(.*)_\\d+'",
        "output",
    )
    annotation_list: bool = option(
        False,
        "also write NAME.txt with lines `path x1,y1,x2,y2,class ...`, without difficult objects, by --pixel-origin",
        "output",
    )
    write_sets: bool = option(
        False,
        "pascal, with --split: also write the parts, and trainval, as ImageSets/Main/NAME.txt in each root or year; a "
        "file with other names is never replaced",
        "output",
    )
    target: str = option("data/train.lst", "list to write; .rec, .idx and .json go beside it", "output")
    overwrite: bool = option(
        False, "replace the record, index, list and sidecar that are there, all at once at the end", "output"
    )
    shuffle: bool = option(True, "shuffle the images; --no-shuffle keeps the order of the sets", "output")
    seed: int = option(233, "seed of the shuffle and of --split", "output", minimum=0)
    skip_bad: bool = option(
        False,
        "leave out images that are damaged or missing, or have a label that cannot be read, and list them, instead of "
        "refusing",
        "output",
    )
    num_thread: int | None = option(
        None, "worker processes; none means all usable cores", "output", minimum=1, maximum=256
    )


T = TypeVar("T")
_LOG_SECONDS = 10.0
logger = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    """Reads the annotations, packs them and says what was written."""
    options = parse_options(
        PrepareOptions,
        argv,
        "Packs annotated images into NAME.rec, .idx, .lst and .json.",
        example=EXAMPLE,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    exit_on_sigterm()
    options = replace(options, bit_depth=checked_bit_depth(options.bit_depth))
    target = _target(options)
    _check_write_sets(options)
    group_by = _group_by(options)
    names = _names(options)
    source, kind = _read(options, None if options.only_class_names else names)
    if options.write_sets and kind != "pascal":
        raise OptionError(f"--write-sets: only pascal folders have image sets, {options.root} is {kind}; leave it out")
    imdb = only_classes(source, names) if options.only_class_names and names else source
    for line in similar_names(imdb.class_names):
        logger.warning(line)
    parts = split_dataset(imdb, options.split, options.seed, group_by) if options.split else {}
    if group_by:
        _tell_groups(imdb, group_by)
    targets = {name: target.with_name(f"{target.stem}_{name}.lst") for name in parts}
    for path in targets.values() if parts else [target]:
        _refuse_sources(path, source.sources, options)
        _refuse_earlier(path, options)
    if not parts:
        _pack(imdb, target, options, kind, source.bad)
        return
    given = bool(options.annotations or options.images)
    sets = image_sets(roots_of(options.root), imdb.images, parts, given) if options.write_sets else {}
    _refuse_other_sets(sets)
    print_list("bad annotations, left out", source.bad)
    for name, part in parts.items():
        _pack(part, targets[name], options, kind)
    _write_sets(sets)


def _pack(imdb: Imdb, target: Path, options: PrepareOptions, kind: str, bad: Sequence[str] = ()) -> None:
    """Packs a data set or a part of one, and says what was written. bad: a sentence for each annotation left out."""
    try:
        if options.annotation_list:
            _check_paths(imdb, options.true_negative)
        target.parent.mkdir(parents=True, exist_ok=True)
        report = pack_dataset(
            imdb,
            target,
            seed=options.seed if options.shuffle else None,
            workers=options.num_thread or usable_threads(),
            skip_bad=options.skip_bad,
            keep_empty=options.true_negative,
            rules=Rules(options.trust_size, options.duplicates),
            source=_source(options, kind),
            bit_depth=options.bit_depth,
            progress=progress,
        )
        if options.annotation_list:
            write_annotation_list(target.with_suffix(".txt"), report.images, options.pixel_origin)
    except OSError as error:
        raise DataError(f"{error.filename or target}: cannot be written ({error.strerror})") from error
    report.bad[:0] = bad
    _print_report(report, target, " .txt" if options.annotation_list else "")


def _check_paths(imdb: Imdb, keep_empty: bool) -> None:
    """DataError for the path of an image to pack that an annotation list cannot hold."""
    for image in imdb.images:
        if keep_empty or len(image.objects):
            listed_path(image)


def _refuse_sources(target: Path, sources: Sequence[Path], options: PrepareOptions) -> None:
    """OptionError where a file to write is one that was read."""
    names = [Path(name) for name in options.class_names if Path(name).suffix != ".json"]  # a .json is written alike
    suffixes = (".lst", ".rec", ".idx", ".json", *([".txt"] if options.annotation_list else []))
    outputs = [path for path in map(target.with_suffix, suffixes) if path.exists()]
    for source in (*sources, *names) if outputs else ():
        for output in outputs:
            if source.exists() and output.samefile(source):
                raise OptionError(f"--target {target}: {output} would replace {source}, which is read; choose another")


def _group_by(options: PrepareOptions) -> re.Pattern[str] | None:
    """The pattern of --group-by, None without one."""
    if not options.group_by:
        return None
    if not options.split:
        raise OptionError("--group-by: says which images the parts of --split keep together; give that, too")
    try:
        return re.compile(options.group_by)
    except re.error as error:
        raise OptionError(f"--group-by {options.group_by}: is no regular expression ({error}); correct it") from error


def _tell_groups(imdb: Imdb, group_by: re.Pattern[str]) -> None:
    """Says how many groups there are; DataError if the pattern matches no name."""
    keys = [group_of(image.name, group_by) for image in imdb.images]
    alone = sum(not key[0] for key in keys)
    if alone == len(keys):
        raise DataError(f"--group-by {group_by.pattern}: matches no name, as {imdb.images[0].name}; correct it")
    print(f"groups by name: {len({key for key in keys if key[0]})}, images whose names give none: {alone}")


def _check_write_sets(options: PrepareOptions) -> None:
    if options.write_sets and not options.split:
        raise OptionError("--write-sets: the sets are the parts of --split; give that, too")
    if options.write_sets and options.dataset not in (AUTO, "pascal"):
        raise OptionError(f"--write-sets: only pascal folders have image sets, --dataset is {options.dataset}")
    if options.write_sets and (options.annotations or options.images):
        roots = roots_of(options.root)
        if len(roots) > 1 or not roots[0].is_dir():
            raise OptionError(
                f"--write-sets with --annotations or --images: the sets go to ImageSets/ in --root, and {options.root} "
                "is not one folder; name one"
            )


def _refuse_other_sets(sets: Mapping[Path, bytes]) -> None:
    """OptionError where a set cannot be written, or is there already with other names."""
    for path, content in sets.items():
        check_output_file("--write-sets", str(path), make_folders=True)
        if path.exists() and path.read_bytes() != content:
            raise OptionError(
                f"--write-sets: {path} holds other names and is not replaced; move it away, or take it with --set "
                f"{path.stem}"
            )


def _write_sets(sets: Mapping[Path, bytes]) -> None:
    """Writes the image sets, all or none, and says where they are."""
    try:
        for folder in {path.parent for path in sets}:
            folder.mkdir(parents=True, exist_ok=True)
        write_all(sets)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be written ({error.strerror})") from error
    for path in sets:
        print(f"{path} written")


def _refuse_earlier(target: Path, options: PrepareOptions) -> None:
    """OptionError for a target with files of an earlier set, unless they are to be replaced."""
    there = next((path for path in map(target.with_suffix, (".rec", ".lst", ".idx", ".json")) if path.exists()), None)
    if there and not options.overwrite:
        raise OptionError(f"--target {options.target}: {there} is there; choose another name, or give --overwrite")


def _names(options: PrepareOptions) -> tuple[str, ...] | None:
    """The names that --class-names gives."""
    names = read_class_names(options.class_names)
    if options.only_class_names and not names:
        raise OptionError("--only-class-names: name the classes to keep with --class-names")
    return names


def only_classes(imdb: Imdb, names: Sequence[str]) -> Imdb:
    """The data set with the objects of the named classes alone; says how many of the others are left out."""
    chosen = choose_classes(imdb, names)
    if chosen.left_out:
        counts = ", ".join(f"{name} {count}" for name, count in chosen.left_out.items())
        print(f"objects left out, as --only-class-names says: {counts}")
    return chosen


def _read(options: PrepareOptions, names: tuple[str, ...] | None) -> tuple[Source, str]:
    """(the annotations that the options name, their kind). names by id; None takes those of the annotations."""
    wanted = Wanted(
        options.dataset,
        Path(options.root),
        years=options.year,
        sets=options.set,
        names=names,
        pixel_origin=options.pixel_origin,
        skip_bad=options.skip_bad,
        every=bool(options.split),
        polygons=options.polygons,
        allow_outside=options.allow_outside,
        annotations=Path(options.annotations) if options.annotations else None,
        images=Path(options.images) if options.images else None,
    )
    return read_sources(wanted, roots_of(options.root))


def roots_of(text: str) -> list[Path]:
    """The roots in a text with commas; a path that is there as it stands is one root."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [Path(text)] if Path(text).exists() or len(parts) < 2 else [Path(part) for part in parts]


def _target(options: PrepareOptions) -> Path:
    """The path of the .lst; a name ending in .rec is understood too."""
    target = Path(options.target)
    if target.suffix not in (".lst", ".rec"):
        raise OptionError(f"--target {target} must end in .lst; the .rec, .idx and .json go beside it")
    return target.with_suffix(".lst")


def _source(options: PrepareOptions, kind: str) -> str:
    roots = ",".join(root.resolve().name for root in roots_of(options.root))
    parts = [kind, roots, ",".join(options.year), ",".join(options.set)]
    origin = f", pixel origin {options.pixel_origin}" if {"pascal", "list", "csv"} & set(kind.split("+")) else ""
    return " ".join(part for part in parts if part) + origin


def _print_report(report: Report, target: Path, more: str) -> None:
    counts = np.array(report.counts)
    print_list("bad images, left out", report.bad)
    print_list("boxes dropped", report.dropped)
    print_list("images of another size than annotated, their boxes were scaled", report.scaled)
    print_list("images with an EXIF orientation, which is ignored", report.rotated)
    print_list("images of which --bit-depth clips many values", report.outside)
    for lines, what in ((report.twice, "the same class and box twice"), (report.alike, "nearly the same box twice")):
        print_list(what, lines)
    print_list("boxes that reach far outside their image", report.far)
    print_list("boxes less than two pixels wide or high", report.thin)
    print_list("images that lost all their boxes, packed as images without objects", report.emptied)
    print(f"{target.with_suffix('')}.lst .rec .idx .json{more} written")
    left_out = len(report.bad) + report.empty
    print(f"images: {counts.size}, without objects: {int((counts == 0).sum())}, left out: {left_out}")
    print(f"objects: {counts.sum()}, most in one image: {counts.max()}, dropped boxes: {len(report.dropped)}")
    if report.clipped:
        print(f"boxes clipped to their image: {report.clipped}")
    width = max(len(name) for name in report.class_names)
    for name, number in zip(report.class_names, report.objects_per_class, strict=True):
        print(f"  {name:<{width}} {number:>8}")


def progress(images: Iterable[T], total: int, what: str = "packing") -> Iterator[T]:
    """A bar on a terminal, a line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(images, total=total, unit="image", desc=what, file=sys.stderr)
        return
    begin = shown = time.monotonic()
    for count, image in enumerate(images, 1):
        yield image
        raise_lost_signal()
        now = time.monotonic()
        if now - shown >= _LOG_SECONDS or count == total:
            logger.info("%s: %d of %d images, %.0f images/s", what, count, total, count / max(now - begin, 1e-6))
            shown = now


def print_list(what: str, lines: Sequence[str]) -> None:
    """A heading with the number of lines, and the first ten of them; nothing without lines."""
    if lines:
        print(f"{what}: {len(lines)}")
        for line in shortened(lines):
            print(f"  {line}")


if __name__ == "__main__":
    run_command(main)
