"""Converts annotated images, or records, into a folder of VOC, COCO, YOLO, CSV or LabelMe.

python tools/convert_dataset.py ../mine --to yolo --output ../mine_yolo
python tools/convert_dataset.py data/train.rec data/val.rec --to coco --output ../mine_coco
"""

import glob
import importlib
import itertools
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

if not __package__:
    importlib.import_module("as_module")

from dataclasses import dataclass, field, replace

import numpy as np

from common.errors import DataError, OptionError
from common.files import is_alive, open_regular, sync_folder
from config.command_line import boolean_flags, parse_options
from config.options import option, same_option, without_effect
from dataset.class_names import read_class_names
from dataset.darknet_data import numbered_names
from dataset.fitting import basis_of
from dataset.image_check import IMAGE_SUFFIXES, OTHER_SUFFIXES, file_header, record_header
from dataset.image_list import listed_paths
from dataset.image_pool import or_reason, refuse_unusable
from dataset.imdb import AnnotatedImage, Imdb
from dataset.record_source import annotated_image, open_source
from dataset.recordio import RecordReader
from dataset.sources import Wanted, read_sets
from dataset.writers import FORMATS, Format, check_class_names, flat_names, losses, safe_name
from detect.inputs import split_words
from machine.command import exit_on_sigterm, held, run_command
from tools.prepare_dataset import PrepareOptions, only_classes, print_list, progress

EXAMPLE = "python tools/convert_dataset.py ../mine --to yolo --output ../mine_yolo"
_RECORD = ".rec"
_SIGNATURE_BYTES = 16
_SUFFIXES = (*IMAGE_SUFFIXES, *OTHER_SUFFIXES)
logger = logging.getLogger(__name__)
converting = partial(progress, what="converting")


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert and how; the words before and after the options are a folder, or records."""

    to: str = option("", "format to write", choices=tuple(FORMATS))
    output: str = option("", "folder to write, which must be new or empty; it appears when it is complete")
    pictures: str = option(
        "copy",
        "copy; link: hard links, which need no space, but who changes such a file changes both; none: annotations "
        "alone, to be used with the pictures where they are",
        choices=("copy", "link", "none"),
    )
    output_origin: int = option(
        1, "what --pixel-origin is when the output is read: 1 or 0; counts for voc and csv", choices=(0, 1)
    )
    dataset: str = same_option(PrepareOptions, "dataset", None)
    annotations: str = option("", "folder of the annotations, where it is no usual one of the folder", "annotations")
    images: str = option("", "folder of the images, where it is no usual one of the folder", "annotations")
    year: tuple[str, ...] = same_option(PrepareOptions, "year", None)
    set: tuple[str, ...] = option(
        (),
        "sets of a folder, which stay sets; none means train, val, test and trainval, those that are there, else all "
        "images as one set",
        "annotations",
    )
    class_names: tuple[str, ...] = same_option(PrepareOptions, "class_names", None)
    only_class_names: bool = same_option(PrepareOptions, "only_class_names", None)
    pixel_origin: int = same_option(PrepareOptions, "pixel_origin", None)
    trust_size: str | None = same_option(PrepareOptions, "trust_size", None)
    allow_outside: bool = same_option(PrepareOptions, "allow_outside", None)
    polygons: str = same_option(PrepareOptions, "polygons", None)
    skip_bad: bool = same_option(PrepareOptions, "skip_bad", None)


@dataclass(frozen=True)
class Item:
    """An image to convert: its name in the source; load gives it in pixels of its picture; path: its file, None of a
    record."""

    name: str
    load: Callable[[], "Loaded"]
    path: Path | None = None


@dataclass(frozen=True)
class Loaded:
    """An image whose objects and size are those of its picture.

    content: the picture's bytes in a record. turned: it has an EXIF orientation. scaled: a line if the annotation was
    of another size. reason: why the image cannot be used.
    """

    image: AnnotatedImage | None = None
    content: bytes = b""
    turned: bool = False
    scaled: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Found:
    """What was read: {set: its items}, names of the classes, what it was, lines about what was left out."""

    sets: Mapping[str, Sequence[Item]]
    class_names: tuple[str, ...]
    kind: str
    bad: Sequence[str] = ()
    dropped: Sequence[str] = ()


@dataclass
class Report:
    """What was written: {set: images}; lines for the user: unusable images, scaled ones, those with an EXIF
    orientation, changed names; copies: number of pictures that could not be linked."""

    sets: dict[str, list[AnnotatedImage]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    scaled: list[str] = field(default_factory=list)
    rotated: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    copies: int = 0


def main(argv: list[str]) -> None:
    """Reads the annotations, writes the folder and says what is in it."""
    words, flags = split_words(argv, boolean_flags(ConvertOptions))
    options = parse_options(
        ConvertOptions,
        flags,
        "Converts a folder of annotated images, or records (NAME.rec), which are named without a flag, into another "
        "format. The pictures stay as they are.",
        example=EXAMPLE,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    exit_on_sigterm()
    roots = _checked_roots(words, options)
    for line in without_effect(options, _idle_options(roots, options)):
        logger.warning(line)
    output = _checked_output(roots, options)
    found = _read_records(roots, options) if roots[0].suffix == _RECORD else _read_folder(roots[0], options)
    check_class_names(found.class_names, coco=options.to == "coco")
    try:
        with _new_folder(output) as folder:
            report = _convert(found, folder, options)
    except OSError as error:
        raise DataError(f"{error.filename or output}: cannot be written ({error.strerror})") from error
    _print_report(found, report, output, options)


def _checked_roots(words: Sequence[str], options: ConvertOptions) -> list[Path]:
    if not words:
        raise OptionError("name a folder with annotations, or a record (NAME.rec); see --help")
    if not options.to:
        raise OptionError(f"--to: name the format to write, one of {', '.join(FORMATS)}")
    roots = [Path(word) for word in words]
    missing = next((root for root in roots if not root.exists()), None)
    if missing is not None:
        raise OptionError(f"{missing}: no such file or folder; check the path")
    records = [root.suffix == _RECORD for root in roots]
    if len(roots) > 1 and not all(records):
        raise OptionError(f"{' '.join(words)}: name one folder, or records alone")
    if all(records) and options.pictures != "copy":
        raise OptionError(f"--pictures {options.pictures}: the pictures of a record are in it; leave it out")
    return roots


def _idle_options(roots: Sequence[Path], options: ConvertOptions) -> list[tuple[tuple[str, ...], str]]:
    """Names of options that do nothing, and why, as without_effect takes them."""
    of_folders = ("dataset", "annotations", "images", "year", "set", "only_class_names", "pixel_origin", "trust_size")
    groups = [((*of_folders, "polygons", "allow_outside"), "for records")] if roots[0].suffix == _RECORD else []
    return groups + ([] if options.to in ("voc", "csv") else [(("output_origin",), f"with --to {options.to}")])


def _checked_output(roots: Sequence[Path], options: ConvertOptions) -> Path:
    """The folder to write, without links; OptionError unless it is new or empty, and apart from what is read."""
    if not options.output:
        raise OptionError("--output: name the folder to write")
    output = Path(options.output).resolve()
    if output.exists() and not output.is_dir():
        raise OptionError(f"--output {options.output}: is a file; name a new folder")
    if output.is_dir() and any(output.iterdir()):
        raise OptionError(f"--output {options.output}: holds files, and none is replaced; name a new folder")
    named = [Path(text) for text in (options.annotations, options.images) if text]
    around = next((one for one in (*roots, *named) if one.is_dir() and output.is_relative_to(one.resolve())), None)
    if around is not None:
        raise OptionError(f"--output {options.output}: lies in {around}, which is read; name a folder elsewhere")
    return output


def _read_folder(root: Path, options: ConvertOptions) -> Found:
    """The images of a folder, or of a file of annotations, by their sets."""
    names = read_class_names(options.class_names)
    if options.only_class_names and not names:
        raise OptionError("--only-class-names: name the classes to keep with --class-names")
    wanted = Wanted(
        options.dataset,
        root,
        years=options.year,
        sets=options.set,
        names=None if options.only_class_names else names,
        pixel_origin=options.pixel_origin,
        skip_bad=options.skip_bad,
        polygons=options.polygons,
        allow_outside=options.allow_outside,
        annotations=Path(options.annotations) if options.annotations else None,
        images=Path(options.images) if options.images else None,
    )
    read, kind = read_sets(wanted)
    sets: dict[str, Imdb] = dict(read)
    if options.only_class_names and names:
        sets = {name: only_classes(imdb, names) for name, imdb in sets.items()}
    return Found(
        {name: [_item(image, options) for image in imdb.images] for name, imdb in sets.items()},
        tuple(next(iter(sets.values())).class_names),
        kind,
        list(dict.fromkeys(line for imdb in read.values() for line in imdb.bad)),
        list(dict.fromkeys(line for imdb in read.values() for line in imdb.dropped)),
    )


def _item(image: AnnotatedImage, options: ConvertOptions) -> Item:
    return Item(image.name, partial(_load, image, options.trust_size), image.path)


def _load(image: AnnotatedImage, trust: str | None) -> Loaded:
    return or_reason(lambda: _in_pixels(image, trust), lambda reason: Loaded(reason=reason))


def _in_pixels(image: AnnotatedImage, trust: str | None) -> Loaded:
    """Reads a picture's header; its boxes are scaled to it where the annotation is of another size."""
    info = file_header(image.path)
    basis, size, turned = basis_of(image, info, trust), info.size, info.orientation != 1
    if basis == size:
        return Loaded(replace(image, size=size), turned=turned)
    scale = np.array([1, size[1] / basis[1], size[0] / basis[0]])[[0, 1, 2, 1, 2, 0]]
    line = f"{image.name}: {basis[1]} x {basis[0]} annotated, {size[1]} x {size[0]} decoded"
    return Loaded(replace(image, size=size, objects=image.objects * scale), turned=turned, scaled=line)


def _read_records(paths: Sequence[Path], options: ConvertOptions) -> Found:
    """The images of records, each a set of its own where there are several."""
    given = read_class_names(options.class_names)
    sources = {path.stem if len(paths) > 1 else "": open_source(path, None, max_objects=1) for path in paths}
    if len(sources) < len(paths):
        raise OptionError(f"{' '.join(map(str, paths))}: two records of one name; the sets are called by these")
    known = {source.class_names for source in sources.values()}
    if len(known) > 1 and not given:
        raise DataError("the records have different classes; convert them one by one, or give --class-names")
    most = max(source.num_classes for source in sources.values())
    names = given or next(iter(known)) or numbered_names(most)
    if not given and None in known:
        logger.warning("classes of records without names are called %s, ...; --class-names names them", names[0])
    if len(names) < most:
        raise OptionError(f"--class-names: {len(names)} names for {most} classes of the record; name them all")
    sets = {}
    for name, source in sources.items():
        paths_of = listed_paths(source.reader.path)
        named = [paths_of.get(number, f"{number:06d}") for number in source.reader.image_ids().tolist()]
        sets[name] = [
            Item(one, partial(_load_record, source.reader, position, len(names), one))
            for position, one in enumerate(named)
        ]
    return Found(sets, tuple(names), "record")


def _load_record(reader: RecordReader, position: int, num_classes: int, name: str) -> Loaded:
    def load() -> Loaded:
        image, content = annotated_image(reader, position, num_classes, name)
        return Loaded(image, content, record_header(content, reader.where(position)).orientation != 1)

    return or_reason(load, lambda reason: Loaded(reason=reason))


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that gets its name at the end of the block; removed where the block fails.

    Those that killed processes left are removed first.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    for left in output.parent.glob(f".{glob.escape(output.name)}.*.tmp"):
        number = left.name.removeprefix(f".{output.name}.").removesuffix(".tmp")
        if number.isdecimal() and (int(number) == os.getpid() or not is_alive(int(number))):
            logger.info("%s, left by a process that was killed, is removed", left)
            shutil.rmtree(left, ignore_errors=True)
    folder = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir()
        yield folder
        with held():
            os.sync()
            os.rename(folder, output)  # over an empty folder, too
            sync_folder(output.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _convert(found: Found, folder: Path, options: ConvertOptions) -> Report:
    """Writes the pictures, then the annotations; DataError with all images that cannot be used, unless skipped."""
    form, report = FORMATS[options.to], Report()
    names = _Names(form)
    items = [
        (part, item, flat)
        for part, some in found.sets.items()
        for item, flat in zip(some, flat_names([item.name for item in some]), strict=True)
    ]
    report.sets = {part: [] for part in found.sets}
    for part, item, flat in converting(items, len(items)):
        loaded = item.load()
        if loaded.image is None:
            report.bad.append(f"{item.name}: {loaded.reason}")
            continue
        if report.bad and not options.skip_bad:
            continue
        name, fresh = names.of(part, item, flat, loaded)
        if fresh:
            _write_picture(item, loaded, folder / form.pictures(part) / name, options.pictures, report)
            _note(item, loaded, name, report)
        report.sets[part].append(replace(loaded.image, name=name))
    refuse_unusable(list(dict.fromkeys(report.bad)), options.skip_bad, sum(map(len, report.sets.values())))
    report.sets = {part: images for part, images in report.sets.items() if images}
    if options.pictures == "none" and report.renamed:
        raise OptionError(f"--pictures none: pictures would get other names ({report.renamed[0]}); copy or link them")
    for path, content in form.annotations(report.sets, found.class_names, options.output_origin):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return report


def _note(item: Item, loaded: Loaded, name: str, report: Report) -> None:
    """Adds what the user should know of an image that was written as `name`."""
    if PurePosixPath(item.name).name != name and item.path is not None:
        report.renamed.append(f"{item.name}: {name}")
    if loaded.scaled:
        report.scaled.append(loaded.scaled)
    if loaded.turned:
        report.rotated.append(item.name)


def _write_picture(item: Item, loaded: Loaded, target: Path, how: str, report: Report) -> None:
    if how == "none":
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if item.path is None:
        target.write_bytes(loaded.content)
        return
    source = item.path.resolve()  # a link to a link would lead nowhere one day
    if how == "link":
        try:
            os.link(source, target)
            return
        except OSError:  # another disk, a file system without links, or too many of them: copied, or refused below
            report.copies += 1
    shutil.copyfile(source, target)


class _Names:
    """Names of pictures that no reader trips over; no two in a folder have one stem, whatever the case of letters."""

    def __init__(self, form: Format) -> None:
        self._form = form
        self._taken: set[tuple[str, str]] = set()
        self._of_file: dict[tuple[str, Path], tuple[str, np.ndarray]] = {}

    def of(self, part: str, item: Item, flat: str, loaded: Loaded) -> tuple[str, bool]:
        """(name, whether it is new) of an item of a set; one file in two sets of a format that shares them has one.

        DataError where such a file has other objects in the second set.
        """
        folder, objects = self._form.pictures(part), _objects_of(loaded)
        key = (folder, item.path) if item.path else None
        if key in self._of_file:
            name, before = self._of_file[key]
            if not np.array_equal(before, objects):
                raise DataError(f"{item.name} is in two sets with other objects; convert them one by one with --set")
            return name, False
        name = self._free(folder, part, flat, loaded.content or _first_bytes(item))
        if key:
            self._of_file[key] = name, objects
        return name, True

    def _free(self, folder: str, part: str, flat: str, content: bytes) -> str:
        """A name that is not taken: the own one, with the set before it, or with a number behind it."""
        stem, suffix = safe_name(flat, content)
        for candidate in itertools.chain([stem, f"{part}_{stem}"], (f"{stem}_{k}" for k in itertools.count(2))):
            if (folder, candidate.casefold()) not in self._taken:
                self._taken.add((folder, candidate.casefold()))
                return candidate + suffix
        raise AssertionError("numbers have no end")


def _first_bytes(item: Item) -> bytes:
    """What tells the format of a file whose name does not; else nothing."""
    if item.path is None or item.path.suffix.lower() in _SUFFIXES:
        return b""
    with open_regular(item.path) as file:
        return file.read(_SIGNATURE_BYTES)


def _objects_of(loaded: Loaded) -> np.ndarray:
    assert loaded.image is not None  # only unusable ones have none
    return loaded.image.objects


def _print_report(found: Found, report: Report, output: Path, options: ConvertOptions) -> None:
    print_list("bad annotations, left out", found.bad)
    print_list("bad images, left out", list(dict.fromkeys(report.bad)))
    print_list("boxes dropped", found.dropped)
    print_list("images of another size than annotated, their boxes were scaled", report.scaled)
    print_list("images with an EXIF orientation, which is ignored here, not by all", report.rotated)
    print_list("pictures with another name", report.renamed)
    if report.copies:
        print(f"pictures copied, as they cannot be linked there: {report.copies}")
    for line in losses(options.to, report.sets, found.class_names, options.output_origin):
        print(line)
    print(f"{output} written: {found.kind} as {options.to}, classes: {len(found.class_names)}")
    for name, images in report.sets.items():
        counts = np.array([len(image.objects) for image in images])
        where = f"{name}: " if name else ""
        print(f"{where}images: {len(images)}, without objects: {int((counts == 0).sum())}, objects: {counts.sum()}")


if __name__ == "__main__":
    run_command(main)
