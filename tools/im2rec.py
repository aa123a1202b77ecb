"""Makes image lists and packs them into RecordIO: the command line of mxnet's own im2rec, and the same files.

python tools/im2rec.py --list --recursive --train-ratio 0.9 data/flowers images/flowers
python tools/im2rec.py --resize 256 data/flowers images/flowers
"""

import importlib
import logging
import os
import re
import sys
from pathlib import Path

if not __package__:
    importlib.import_module("as_module")

from dataclasses import dataclass

from common.errors import DataError, OptionError
from common.files import write_all
from config.command_line import parse_options
from config.options import option
from dataset.class_names import read_class_names
from dataset.image_list import ImageRoot, find_images, format_list, split_images
from dataset.list_packing import DEFAULT_QUALITY, Encoder, ImageList, PackedList, load_list, pack_list
from dataset.transforms import checked_bit_depth
from machine.command import exit_on_sigterm, run_command
from machine.cpu import usable_threads
from tools.prepare_dataset import print_list, progress

_LIST, _PACK = "making lists (--list)", "packing a list"


@dataclass(frozen=True)
class Im2recOptions:
    """What to list or to pack, and how."""

    prefix: str = option(
        "", "PREFIX.lst is made or packed; without it, the lists that --list makes of it", words="positional"
    )
    root: str = option("", "folder that the paths in the list start from", words="positional")
    follow_links: bool = option(
        False, "take what symbolic links in ROOT lead to outside of it, too, as mxnet's im2rec does"
    )
    list: bool = option(False, "make PREFIX.lst of the images in ROOT instead of packing one", _LIST)
    exts: tuple[str, ...] = option((".jpeg", ".jpg", ".png"), "suffixes of images", _LIST, words="several")
    chunks: int = option(1, "lists PREFIX_0, PREFIX_1... to spread the images over", _LIST, minimum=1)
    train_ratio: float = option(
        1.0, "share of the images for PREFIX_train.lst; what both ratios leave goes to PREFIX_val.lst", _LIST,
        minimum=0.0, maximum=1.0,
    )  # fmt: skip
    test_ratio: float = option(0.0, "share of the images for PREFIX_test.lst", _LIST, minimum=0.0, maximum=1.0)
    recursive: bool = option(False, "walk the folders below ROOT, each of them a class", _LIST)
    shuffle: bool = option(True, "shuffle the images; --no-shuffle keeps them sorted", _LIST)
    pass_through: bool = option(False, "store the files as they are instead of encoding the images anew", _PACK)
    resize: int = option(0, "length of the shorter edge in pixels; 0 = as it is", _PACK, minimum=0, maximum=16384)
    center_crop: bool = option(False, "cut the square out of the middle (not with detection labels)", _PACK)
    quality: int | None = option(
        None,
        "JPEG quality 1-100, PNG compression 1-9 (default: 95 for .jpg, 9 for .png)",
        _PACK,
        minimum=1,
        maximum=100,
    )
    num_thread: int | None = option(None, "threads (default: all usable cores)", _PACK, minimum=1, maximum=256)
    color: int = option(1, "1 = colour, 0 = grey, -1 = as stored, with alpha", _PACK, choices=(-1, 0, 1))
    encoding: str = option(".jpg", "encoding of the images", _PACK, choices=(".jpg", ".png"))
    bit_depth: str = option(
        "",
        "how pixels of more than 8 bits become 8: window:LOW,HIGH or percentile:P,Q, as in prepare_dataset.py; none "
        "refuses such images",
        _PACK,
    )
    pack_label: bool | None = option(
        None, "store all values of a label, --no-pack-label: the first (default: all where there are several)", _PACK
    )
    class_names: tuple[str, ...] = option(
        (),
        "names of the classes of detection labels, for the sidecar PREFIX.json: a list, a file with one a line, or the "
        ".json of a record (default: those of the PREFIX.json that is there; without one no sidecar is written)",
        _PACK,
    )
    check_labels: bool = option(
        True, "refuse detection labels that cannot be trained on; --no-check-labels takes any numbers", _PACK
    )
    skip_bad: bool = option(False, "leave damaged and missing images out, and list them, instead of refusing", _PACK)


_MADE_LISTS = r"(_\d+)?(_train|_val|_test)?\.lst"  # what --list appends to PREFIX
logger = logging.getLogger("im2rec")


def main(argv: list[str]) -> None:
    """Makes lists, or packs them one after the other."""
    options = parse_options(
        Im2recOptions,
        argv,
        "Makes image lists (--list), or packs them into PREFIX.rec and .idx.",
        example="python tools/im2rec.py --resize 256 data/flowers images/flowers",
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    exit_on_sigterm()
    try:
        if options.list:
            make_lists(options)
        else:
            pack_lists(options)
    except OSError as error:
        raise DataError(f"{error.filename or options.prefix}: cannot be read or written ({error.strerror})") from error


def make_lists(options: Im2recOptions) -> None:
    """Writes PREFIX.lst, or the lists of the chunks and ratios: all of them or none."""
    images, classes = find_images(options.root, options.exts, options.recursive, options.follow_links)
    lists = split_images(images, options.chunks, options.train_ratio, options.test_ratio, options.shuffle)
    stem = _stem(options.prefix)
    stem.parent.mkdir(parents=True, exist_ok=True)
    contents = {
        stem.with_name(f"{stem.name}{name}.lst"): format_list((i.index, [f"{i.label:f}"], i.path) for i in some)
        for name, some in lists.items()
    }
    write_all(contents)
    for label, folder in enumerate(classes):
        print(folder, label)
    for path, some in zip(contents, lists.values(), strict=True):
        print(f"{path} written, {len(some)} images")


def pack_lists(options: Im2recOptions) -> None:
    """Reads all lists first, so that a wrong line is found before anything is packed."""
    encoder, root, names = (
        _encoder(options),
        ImageRoot(options.root, options.follow_links),
        read_class_names(options.class_names),
    )
    if names and not options.check_labels:
        raise OptionError("--class-names and --no-check-labels exclude each other: a sidecar counts checked boxes")
    sources = [load_list(path, names, options.check_labels) for path in find_lists(options.prefix)]
    for source in sources:
        logger.info("packing %s, %d images", source.path, len(source.entries))
        packed = pack_list(
            source,
            root,
            encoder,
            threads=options.num_thread or usable_threads(),
            pack_label=options.pack_label,
            skip_bad=options.skip_bad,
            progress=progress,
        )
        _print_report(source, packed)


def find_lists(prefix: str) -> list[Path]:
    """PREFIX.lst; without it those that --list makes of PREFIX; for a folder all lists in it.

    Other lists whose names begin with PREFIX are left alone. DataError if there is none.
    """
    stem = _stem(prefix)
    exact = stem.with_name(f"{stem.name}.lst")
    if exact.is_file():
        return [exact]
    if stem.is_dir():
        found = sorted(stem.glob("*.lst"))
    else:
        found = sorted(p for p in stem.parent.glob("*.lst") if re.fullmatch(re.escape(stem.name) + _MADE_LISTS, p.name))
    if not found:
        raise DataError(f"{exact}: no such list, nor {stem.name}_train.lst or the like; make it with --list")
    return found


def _stem(prefix: str) -> Path:
    """PREFIX as an absolute path; a name ending in .lst or .rec is understood too."""
    path = Path(os.path.abspath(prefix))
    return path.with_suffix("") if path.suffix in (".lst", ".rec") else path


def _encoder(options: Im2recOptions) -> Encoder:
    quality = options.quality or DEFAULT_QUALITY[options.encoding]
    if options.encoding == ".png" and quality > DEFAULT_QUALITY[".png"]:
        raise OptionError(f"--quality {quality}: the compression of PNG is 1 to 9")
    if options.pass_through and options.bit_depth:
        raise OptionError("--pass-through stores files as they are, --bit-depth changes their pixels; leave one out")
    return Encoder(
        pass_through=options.pass_through,
        center_crop=options.center_crop,
        resize=options.resize,
        color=options.color,
        encoding=options.encoding,
        quality=quality,
        bit_depth=checked_bit_depth(options.bit_depth),
    )


def _print_report(source: ImageList, packed: PackedList) -> None:
    print_list("bad images, left out", packed.bad)
    print_list("images with an EXIF orientation, which is ignored", packed.rotated)
    print_list("images of which --bit-depth clips many values", packed.outside)
    suffixes = ".rec .idx .json" if source.class_names else ".rec .idx"
    print(f"{source.path.with_suffix('')}{suffixes} written")
    print(f"images: {packed.count}, left out: {len(packed.bad)}, most label values: {packed.label_width}")
    if source.counts is None and packed.label_width > 1:
        print("the labels were packed as they are, not as detection labels ([2, 6, id, xmin, ymin, xmax, ymax, ...])")
    if source.counts is not None:
        print(f"objects: {source.counts.sum()} in the list, most in one image: {source.counts.max()}")
        if not source.class_names:
            print("no class names known, no sidecar written; give --class-names, or --num-class to train.py")


if __name__ == "__main__":
    run_command(main)
