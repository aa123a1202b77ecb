"""Packs annotated images into RecordIO.

python tools/prepare_dataset.py --dataset pascal --root data/VOCdevkit --year 2007,2012 --set trainval \\
    --target data/train.lst
"""

import importlib
import logging
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

if not __package__:
    importlib.import_module("as_module")

import numpy as np
from tqdm import tqdm

from config.errors import DataError, OptionError, run_command
from config.options import parse_options
from config.prepare_options import PrepareOptions
from config.threads import usable_threads
from dataset.packing import Checked, Report, pack_dataset, shortened
from dataset.pascal_voc import PascalVoc
from dataset.sidecar import read_sidecar

_MAX_NAMES_BYTES = 1 << 20
_LOG_SECONDS = 10.0
logger = logging.getLogger("prepare_dataset")


def main(argv: list[str]) -> None:
    """Reads the annotations, packs them and says what was written."""
    options = parse_options(PrepareOptions, argv, "Packs annotated images into NAME.rec, .idx, .lst and .json.")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _terminate)
    target = _target(options)
    _check_options(options)
    imdb = PascalVoc(options.root, options.year, options.set, _class_names(options.class_names), options.pixel_origin)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        report = pack_dataset(
            imdb,
            target,
            seed=options.seed if options.shuffle else None,
            workers=options.num_thread or usable_threads(),
            skip_bad=options.skip_bad,
            source=_source(options),
            progress=_progress,
        )
    except OSError as error:
        raise DataError(f"{error.filename or target}: cannot be written ({error.strerror})") from error
    _print_report(report, target)


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # unwinds, so that temporary files are removed


def _check_options(options: PrepareOptions) -> None:
    if options.dataset != "pascal":
        raise OptionError(f"--dataset {options.dataset} is not supported yet; pascal is")


def _target(options: PrepareOptions) -> Path:
    """The path of the .lst; a name ending in .rec is understood too."""
    target = Path(options.target)
    if target.suffix not in (".lst", ".rec"):
        raise OptionError(f"--target {target} must end in .lst; the .rec, .idx and .json go beside it")
    return target.with_suffix(".lst")


def _class_names(given: tuple[str, ...]) -> tuple[str, ...] | None:
    """The names on the command line, in a text file, or in a sidecar."""
    if not given:
        return None
    names = given
    path = Path(given[0])
    if len(given) == 1 and path.suffix == ".json":
        sidecar = read_sidecar(path)
        if sidecar is None:
            raise OptionError(f"--class-names {path}: no such file")
        names = sidecar.class_names
    elif len(given) == 1 and path.is_file():
        names = _names_in(path)
    repeated = [name for k, name in enumerate(names) if name in names[:k]]
    if repeated or not names:
        raise OptionError(f"--class-names: {f'{repeated[0]!r} is given twice' if repeated else 'no names found'}")
    return names


def _names_in(path: Path) -> tuple[str, ...]:
    try:
        if path.stat().st_size > _MAX_NAMES_BYTES:
            raise OptionError(f"--class-names {path}: too large for a list of names")
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--class-names {path}: not readable as a list of names ({error})") from error
    return tuple(line.strip() for line in lines if line.strip())


def _source(options: PrepareOptions) -> str:
    parts = [options.dataset, Path(options.root).resolve().name, ",".join(options.year), ",".join(options.set)]
    return " ".join(part for part in parts if part) + f", pixel origin {options.pixel_origin}"


def _progress(images: Iterable[Checked], total: int) -> Iterator[Checked]:
    """A bar on a terminal, a line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(images, total=total, unit="image", desc="packing", file=sys.stderr)
        return
    begin = shown = time.monotonic()
    for count, image in enumerate(images, 1):
        yield image
        now = time.monotonic()
        if now - shown >= _LOG_SECONDS or count == total:
            logger.info("packing: %d of %d images, %.0f images/s", count, total, count / max(now - begin, 1e-6))
            shown = now


def _print_report(report: Report, target: Path) -> None:
    counts = np.array(report.counts)
    _print_list("bad images, left out", report.bad)
    _print_list("boxes dropped", report.dropped)
    _print_list("images of another size than annotated, the decoded one was used", report.resized)
    _print_list("images with an EXIF orientation, which is ignored", report.rotated)
    print(f"{target.with_suffix('')}.lst .rec .idx .json written")
    print(f"images: {counts.size}, without objects: {int((counts == 0).sum())}, left out: {len(report.bad)}")
    print(f"objects: {counts.sum()}, most in one image: {counts.max()}, dropped boxes: {len(report.dropped)}")
    width = max(len(name) for name in report.class_names)
    for name, number in zip(report.class_names, report.objects_per_class, strict=True):
        print(f"  {name:<{width}} {number:>8}")


def _print_list(what: str, lines: list[str]) -> None:
    if lines:
        print(f"{what}: {len(lines)}")
        for line in shortened(lines):
            print(f"  {line}")


if __name__ == "__main__":
    run_command(main)
