"""Tells what is wrong or doubtful in records and annotated folders, a line each; the files stay as they are.

Of several sets it tells what they share, too.

python tools/check_dataset.py data/train.rec data/val.rec
python tools/check_dataset.py ../mine --set train --fix data/clean.rec
"""

import importlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if not __package__:
    importlib.import_module("as_module")

from dataclasses import dataclass

from common.errors import DataError, OptionError
from common.files import check_output_file, write_atomically
from config.command_line import boolean_flags, parse_options
from config.options import option, same_option
from dataset.checking import DROP, CheckedSet, OpenedAnnotations, OpenedRecord, OpenedSet, clean_record
from dataset.class_names import read_class_names
from dataset.defects import CODES, Defect, Wish
from dataset.layouts import recognise, sets_of
from dataset.leaks import MOST_SHIFTED, find_leaks, shifts_left_out
from dataset.packing import pack_dataset
from dataset.sources import AUTO, Wanted
from dataset.transforms import checked_bit_depth
from detect.inputs import split_words
from machine.command import exit_on_sigterm, run_command
from machine.cpu import usable_threads
from tools.prepare_dataset import PrepareOptions, progress

EXAMPLE = "python tools/check_dataset.py data/train.rec --json defects.json"
_RECORD = ".rec"
SETS = "ImageSets"  # the folder of the lists of a VOC folder
logger = logging.getLogger(__name__)
checking = partial(progress, what="checking")


@dataclass(frozen=True)
class SetOptions:
    """How the records and folders are read that stand before and after the options."""

    dataset: str = same_option(PrepareOptions, "dataset", None)
    set: tuple[str, ...] = option(
        (),
        "sets of a folder, each by itself and compared with the others; none means train, val and test where "
        "two of them are there, else all images",
        "annotations",
    )
    class_names: tuple[str, ...] = same_option(PrepareOptions, "class_names", None)
    pixel_origin: int = same_option(PrepareOptions, "pixel_origin", None)
    allow_outside: bool = same_option(PrepareOptions, "allow_outside", None)
    polygons: str = same_option(PrepareOptions, "polygons", None)
    bit_depth: str = same_option(PrepareOptions, "bit_depth", None)
    num_thread: int | None = same_option(PrepareOptions, "num_thread", None)


@dataclass(frozen=True)
class CheckOptions(SetOptions):
    """What to check, and what to write."""

    pictures: bool = option(True, "decode all pictures; --no-pictures reads their headers alone, which is faster")
    json: str = option("", "also write the defects to this file")
    fix: str = option("", "write a cleaned copy, OUT.rec with .idx and .json; nothing else is changed")


def main(argv: list[str]) -> int:
    """Prints the defects; 1 if there are any, else 0."""
    words, flags = split_words(argv, boolean_flags(CheckOptions))
    options = parse_options(
        CheckOptions,
        flags,
        "Tells what is wrong or doubtful in records (NAME.rec) and annotated folders, which are named without a flag. "
        "Exit status: 0 = nothing, 1 = defects, 2 = a mistake on the command line.",
        example=EXAMPLE,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    exit_on_sigterm()
    _check_options(options, words)
    opened = open_sets(words, options)
    several = len(opened) > 1
    wish = Wish(options.pictures, several and options.pictures, several, checked_bit_depth(options.bit_depth))
    sets = [one.check(wish, options.num_thread or usable_threads(), checking) for one in opened]
    defects = [defect for checked in sets for defect in checked.defects]
    if several:
        defects += leaks_of(sets)
    for defect in defects:
        print(defect)
    _print_counts(sets, defects)
    if options.json:
        write_atomically(Path(options.json), _as_json(sets, defects))
    if options.fix:
        _fix(sets, Path(words[0]), options)
    return int(bool(defects))


def check_words(words: Sequence[str]) -> None:
    """OptionError unless the words name records or folders that are there."""
    if not words:
        raise OptionError("name a record (NAME.rec), or a folder with annotations; see --help")
    missing = next((word for word in words if not Path(word).exists()), None)
    if missing is not None:
        raise OptionError(f"{missing}: no such file or folder; check the path")


def _check_options(options: CheckOptions, words: Sequence[str]) -> None:
    check_words(words)
    if options.json:
        check_output_file("--json", options.json)
    if not options.fix:
        return
    out = Path(options.fix)
    if len(words) > 1:
        raise OptionError(f"--fix writes one cleaned copy, {len(words)} sets are named; name one")
    if out.suffix != _RECORD:
        raise OptionError(f"--fix {out} must end in .rec; the .idx and .json go beside it")
    check_output_file("--fix", str(out), make_folders=True)
    there = next((path for path in map(out.with_suffix, (_RECORD, ".idx", ".lst", ".json")) if path.exists()), None)
    if there:
        raise OptionError(f"--fix {out}: {there} is there; choose another name")


def open_sets(words: Sequence[str], options: SetOptions) -> list[OpenedSet]:
    """The sets that the words name, read but for their images."""
    names = read_class_names(options.class_names)
    opened: list[OpenedSet] = []
    for path in map(Path, words):
        for part in _parts_of(path, options):
            if path.suffix == _RECORD:
                opened.append(OpenedRecord(path))
                continue
            wanted = Wanted(
                options.dataset,
                path,
                sets=part,
                names=names,
                pixel_origin=options.pixel_origin,
                skip_bad=True,
                every=not (path / SETS).is_dir(),
                polygons=options.polygons,
                allow_outside=options.allow_outside,
            )
            opened.append(OpenedAnnotations(wanted))
    return opened


def _parts_of(path: Path, options: SetOptions) -> list[tuple[str, ...]]:
    """The sets of a folder that are checked by themselves, each as --set names it; [()] = all of it."""
    if path.suffix == _RECORD:
        return [()]
    if options.set:
        return [(name,) for name in options.set]
    try:
        found = sets_of(path, recognise(path).kind if options.dataset == AUTO else options.dataset)
    except DataError:  # which the reader tells
        return [()]
    if len(found) < 2:
        return [()]
    logger.info("%s: its sets %s are compared; --set names others", path, ", ".join(found))
    return [(name,) for name in found]


def leaks_of(sets: Sequence[CheckedSet]) -> list[Defect]:
    """What the sets share; a line says what was not looked for."""
    left_out = shifts_left_out(sets)
    if left_out:
        logger.info(
            "%d pairs of pictures are more than %d: of these only frames that are near by name are compared shifted",
            left_out,
            MOST_SHIFTED,
        )
    return find_leaks(sets)


def _print_counts(sets: Sequence[CheckedSet], defects: Sequence[Defect]) -> None:
    for checked in sets:
        print(f"{checked.name}: images: {len(checked.images)}, defects: {len(checked.defects)}")
    for code, count in _counts(defects).items():
        print(f"  {code:<14}{count:>8}  {CODES[code].what}")


def _counts(defects: Sequence[Defect]) -> dict[str, int]:
    """{code: number of its defects}, in the order of CODES, those that occur."""
    found = Counter(defect.code for defect in defects)
    return {code: found[code] for code in CODES if found[code]}


def _as_json(sets: Sequence[CheckedSet], defects: Sequence[Defect]) -> bytes:
    content = {
        "sets": [{"name": checked.name, "images": len(checked.images)} for checked in sets],
        "counts": _counts(defects),
        "defects": [
            {"where": one.where, "code": one.code, "defect": one.text, "remedy": one.remedy} for one in defects
        ],
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def _fix(sets: Sequence[CheckedSet], path: Path, options: CheckOptions) -> None:
    """Writes the cleaned copy: of a record its sound records, of a folder a record of its sound images."""
    if len(sets) > 1:
        raise OptionError(f"--fix writes one cleaned copy, {path} has {len(sets)} sets; name one with --set")
    checked, out = sets[0], Path(options.fix)
    if any(CODES[defect.code].fix == CODES["record"].fix for defect in checked.defects):
        raise DataError(f"{path} cannot be cleaned, nothing was written; the lines above say why")
    out.parent.mkdir(parents=True, exist_ok=True)
    if checked.source is None:
        written, left_out = clean_record(path, checked, out)
    else:
        report = pack_dataset(
            checked.source,
            out.with_suffix(".lst"),
            seed=None,
            workers=options.num_thread or usable_threads(),
            skip_bad=True,
            rules=DROP,
            source=f"{checked.kind} {checked.name}, cleaned",
            bit_depth=checked_bit_depth(options.bit_depth),
            progress=progress,
        )
        written, left_out = len(report.images), len(report.bad) + len(checked.source.bad)
    print(f"{out} written, images: {written}, left out: {left_out}")


if __name__ == "__main__":
    run_command(main)
