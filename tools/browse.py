"""Shows annotated pictures, their defects and charts of their objects in one page that opens from a disk.

python tools/browse.py data/train.rec data/val.rec --output browse.html
python tools/browse.py ../mine --set train --network yolov3_spp --data-shape 416 --charts charts
python tools/browse.py --train --config few_images --train-path data/train.rec --val-path data/val.rec
"""

import base64
import importlib
import logging
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if not __package__:
    importlib.import_module("as_module")

from dataclasses import dataclass, replace

import numpy as np

from common.errors import DataError, OptionError
from common.files import check_output_file, write_atomically
from common.sizes import Size, input_size
from config.command_line import boolean_flags, parse_options
from config.groups import InputOptions
from config.hyp_file import read_hyp
from config.options import fields_of, joined_options, option, same_option, without_effect
from dataset.checking import CheckedSet
from dataset.defects import CODES, Defect, Seen, View, Wish
from dataset.image_check import encode_png
from dataset.leaks import shown_image
from dataset.letterbox import Resize
from dataset.transforms import checked_bit_depth
from detect.inputs import split_words
from drawing.boxes import draw_objects, sheet
from drawing.figures import save_figure
from drawing.page import PALETTE, PICTURES, figure_html, page, read_template
from drawing.set_charts import LARGE_AREA, SMALL_AREA, Chart, Objects, reach_chart, set_charts
from machine.command import exit_on_sigterm, run_command
from machine.cpu import configure_threads, usable_threads
from machine.opencv import cv2
from symbol.registry import family_of, network_options_class
from symbol.symbol_factory import anchor_reach
from tools.check_dataset import SetOptions, check_words, checking, leaks_of, open_sets
from train.checks import check_early
from train.options import train_options_class

EXAMPLE = "python tools/browse.py data/train.rec data/val.rec --output browse.html"
# What --help shows; --help-all has all.
FIRST = ("output", "set", "class_names", "charts", "network", "data_shape", "max_images", "megabytes", "num_thread")
SUFFIXES = (".html", ".htm")
TRAIN, BATCHES = "--train", Path("batches.png")
NETWORK_ALONE = ("data_shape", "resize_mode")  # options that say nothing without --network
MOST_COMPARED = 5000  # objects, drawn at random, whose best anchor is looked for: the share is right to a percent
SEED = 233
BASE64 = 4 / 3  # letters of a byte
DPI = 150
SHEET_COLUMNS, SHEET_PICTURES, MOST_SHEETS = 6, 36, 10
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BrowseOptions(SetOptions):
    """What to show; the words before and after the options are the records and folders."""

    output: str = option("browse.html", "page to write; an older one is replaced")
    charts: str = option("", "folder to write the charts to, as PNG, and sheets of the first pictures")
    max_images: int = option(
        5000,
        "pictures on the page: those with defects first, the others evenly spread; the charts are of all",
        minimum=1,
    )
    megabytes: float = option(
        24.0, "what all thumbnails may take on the page; the more pictures, the smaller they are", minimum=0.1
    )
    network: str | None = same_option(
        InputOptions, "network", "none; a chart then says which objects its anchors reach"
    )
    data_shape: tuple[int, ...] | None = same_option(InputOptions, "data_shape", "the network's usual one")
    resize_mode: str = same_option(InputOptions, "resize_mode", None)


@dataclass(frozen=True)
class Images:
    """The images of all sets in one row: the number of the set and the name of each, what it has shown, its defects and
    its objects (n, 6) in its pixels, none where there is no picture.

    class_names: of all sets, each once; objects have the ids of these.
    """

    sets: Sequence[int]
    names: Sequence[str]
    seen: Sequence[Seen]
    defects: Sequence[Sequence[Defect]]
    objects: Sequence[np.ndarray]
    class_names: Sequence[str]


def main(argv: list[str]) -> None:
    """Reads the sets and writes the page, and the charts if they are asked for; after --train the first batches."""
    if argv and argv[0] == TRAIN:
        _draw_batches(argv[1:])
        return
    cls = browse_options_class()
    words, flags = split_words(argv, boolean_flags(cls))
    options = parse_options(
        cls,
        flags,
        "Writes one page that shows the pictures of records (NAME.rec) and annotated folders, which are named without "
        "a flag, with their boxes, defects and charts. It opens in any browser and needs no network. With --train as "
        "its first word, and options of train.py, it draws the first batches as the network gets them.",
        example=EXAMPLE,
        first=FIRST,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    exit_on_sigterm()
    _check_options(options, words)
    sets = _look(words, options)
    images = gather(sets)
    charts = _charts(images, options)
    data, thumbnails = page_data(sets, images, options.max_images)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters that matplotlib's font lacks; the browser's has them
        html = "".join(figure_html(chart.figure, chart.title, chart.text) for chart in charts)
        if options.charts:
            _write_pictures(Path(options.charts), charts, images)
    parts = {"charts": html or '<p class="soft">There are no objects to draw charts of.</p>'}
    content = page(data["title"], read_template("browse", PICTURES), {"data": data, "thumbnails": thumbnails}, parts)
    _write_page(Path(options.output), content)
    print(f"{options.output} written, {len(content) / 1e6:.1f} MB: {data['summary']}")


def _taken_out(flag: str, argv: Sequence[str], default: Path) -> tuple[Path, list[str]]:
    """The value of a flag, and the other words; OptionError for a flag without one."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith(f"{flag}=") else [word])]
    if flag not in words:
        return default, words
    at = words.index(flag)
    if not "".join(words[at + 1 : at + 2]) or words[at + 1].startswith("--"):
        raise OptionError(f"{flag} needs a value")
    return Path(words[at + 1]), words[:at] + words[at + 2 :]


def _draw_batches(argv: Sequence[str]) -> None:
    """Writes the picture that a training with these options would leave; --output names it."""
    output, words = _taken_out("--output", argv, BATCHES)
    options = parse_options(
        train_options_class(),
        words,
        "Draws the first batches of a training as the network gets them, with their boxes; options are train.py's.",
        presets=True,
        files={"hyp": read_hyp},
        example=f"python tools/browse.py {TRAIN} --train-path data/train.rec --output {BATCHES}",
    )
    if output.suffix.lower() != BATCHES.suffix:
        raise OptionError(f"--output {output} must end in {BATCHES.suffix}")
    check_output_file("--output", str(output))
    check_early(options)
    configure_threads(options.device.cpus)
    from train.training import draw_batches

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    exit_on_sigterm()
    with TemporaryDirectory(prefix="batches-") as folder:
        named = replace(options, output=replace(options.output, prefix=f"{folder}/first"))
        _write_page(output, draw_batches(named).read_bytes())
    print(f"{output} written")


def _write_page(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be written ({error.strerror})") from error


def browse_options_class() -> type[BrowseOptions]:
    """The command line of this tool: with the options of networks, which decide on anchors."""
    return joined_options("BrowseOptions", BrowseOptions, network_options_class())


def _check_options(options: BrowseOptions, words: Sequence[str]) -> None:
    check_words(words)
    if Path(options.output).suffix.lower() not in SUFFIXES:
        raise OptionError(f"--output {options.output} must end in .html; it is a page")
    check_output_file("--output", options.output, make_folders=True)
    if options.charts and Path(options.charts).exists() and not Path(options.charts).is_dir():
        raise OptionError(f"--charts {options.charts} is a file; name a folder")
    if options.network:
        anchor_reach(options.network, _input(options.network, options), np.array([[0.0, 0, 1, 1]]), **_given(options))
        return
    for line in without_effect(options, [((*NETWORK_ALONE, *fields_of(network_options_class())), "without --network")]):
        logger.warning(line)


def _look(words: Sequence[str], options: BrowseOptions) -> list[CheckedSet]:
    """The sets with what their images show; what sets share is a defect of the later one."""
    opened = open_sets(words, options)
    shown = min(options.max_images, sum(one.count for one in opened))
    several, limit = len(opened) > 1, int(options.megabytes * 1e6 / BASE64 / max(1, shown))
    wish = Wish(True, several, several, checked_bit_depth(options.bit_depth), max(1, limit))
    sets = [one.check(wish, options.num_thread or usable_threads(), checking) for one in opened]
    if not any(checked.seen for checked in sets):
        told = [str(defect) for checked in sets for defect in checked.defects]
        raise DataError(f"{', '.join(words)}: no images to show; {'; '.join(told[:3]) or 'name a folder with images'}")
    return sets


def gather(sets: Sequence[CheckedSet]) -> Images:
    """The images of all sets, with the defects that concern them, those between sets included."""
    defects = _more_defects(sets)
    rows = [(s, k) for s, checked in enumerate(sets) for k in range(len(checked.seen))]
    class_names, objects = _joined_classes(sets)
    return Images(
        [s for s, _ in rows],
        [_name(sets[s], k) for s, k in rows],
        [sets[s].seen[k] for s, k in rows],
        [[*sets[s].seen[k].defects, *defects[s, k]] for s, k in rows],
        objects,
        class_names,
    )


def _more_defects(sets: Sequence[CheckedSet]) -> dict[tuple[int, int], list[Defect]]:
    """{(set, number of an image): defects that are not its file's: its boxes without area, what another set has of it}.

    What sets share as a whole becomes a defect of the later one.
    """
    found: dict[tuple[int, int], list[Defect]] = defaultdict(list)
    for s, checked in enumerate(sets):
        images = checked.source.images if checked.source else ()
        dropped = {line: k for k, image in enumerate(images) for line in image.dropped}
        for defect in checked.defects:
            if (line := f"{defect.where}: {defect.text}") in dropped:
                found[s, dropped[line]].append(defect)
    places = {shown_image(checked, k): (s, k) for s, checked in enumerate(sets) for k in range(len(checked.images))}
    for defect in leaks_of(sets) if len(sets) > 1 else ():
        if defect.where in places:
            found[places[defect.where]].append(defect)
        else:
            next(one for one in sets if one.name == defect.where).defects.append(defect)
    return found


def _name(checked: CheckedSet, number: int) -> str:
    """An image of a set: its name, or the place in its record."""
    return checked.names[number] or checked.images[number].removeprefix(f"{checked.name}, ")


def _joined_classes(sets: Sequence[CheckedSet]) -> tuple[list[str], list[np.ndarray]]:
    """(names of the classes of all sets, objects of each image with ids of these); an id without name is `class 7`."""
    places: dict[str, int] = {}
    joined = []
    for checked in sets:
        found = [one.view.objects if one.view else np.zeros((0, 6)) for one in checked.seen]
        rows = np.concatenate([np.zeros((0, 6)), *found])
        named = 0 if checked.assumed else len(checked.class_names)  # of VOC's twenty those that occur
        own = np.union1d(np.arange(named), rows[:, 0].astype(np.int64))
        names = dict(enumerate(checked.class_names))
        ids = np.array([places.setdefault(names.get(k, f"class {k}"), len(places)) for k in own.tolist()], np.int64)
        rows[:, 0] = ids[np.searchsorted(own, rows[:, 0].astype(np.int64))]
        joined += np.split(rows, np.cumsum([len(one) for one in found])[:-1]) if found else []
    return list(places), joined


def page_data(sets: Sequence[CheckedSet], images: Images, most: int) -> tuple[dict[str, Any], list[str]]:
    """(what the page's script reads, the thumbnails of its images in base64): at most `most` images."""
    chosen = _chosen(images, most)
    known = {id(defect) for some in images.defects for defect in some}
    notes = [str(defect) for checked in sets for defect in checked.defects if id(defect) not in known]
    objects = np.bincount(images.sets, [len(objects) for objects in images.objects], len(sets))
    counts = {"images": len(images.seen), "objects": int(objects.sum()), "classes": len(images.class_names)}
    summary = ", ".join(f"{name}: {count:,}" for name, count in counts.items())
    if len(chosen) < len(images.seen):
        summary += f"; {len(chosen):,} of the images are shown (--max-images)"
        logger.info("%d of %d images are shown, those with defects first", len(chosen), len(images.seen))
    codes = {defect.code for some in images.defects for defect in some}
    return {
        "title": ", ".join(checked.name for checked in sets),
        "summary": summary,
        "sets": [
            {"name": checked.name, "images": len(checked.seen), "objects": int(count)}
            for checked, count in zip(sets, objects, strict=True)
        ],
        "classes": [{"name": name} for name in images.class_names],
        "colours": PALETTE,
        "sizes": ["small", "medium", "large"],
        "limits": [SMALL_AREA, LARGE_AREA],
        "codes": {code: {"what": CODES[code].what, "remedy": CODES[code].remedy} for code in CODES if code in codes},
        "notes": notes,
        "images": [_image(images, k) for k in chosen],
    }, [base64.b64encode(view.thumbnail).decode() if (view := images.seen[k].view) else "" for k in chosen]


def _image(images: Images, number: int) -> dict[str, Any]:
    view = images.seen[number].view
    objects = np.round(images.objects[number], 1)
    height, width = view.size if view else (0, 0)
    return {
        "set": images.sets[number],
        "name": images.names[number],
        "width": width,
        "height": height,
        "objects": [[int(row[0]), *row[1:5], int(row[5] > 0)] for row in objects.tolist()],
        "defects": [[defect.code, defect.text] for defect in images.defects[number]],
    }


def _chosen(images: Images, most: int) -> list[int]:
    """The numbers of the images that are shown: those with defects, then others, evenly spread."""
    bad = np.array([bool(some) for some in images.defects])
    first, others = np.flatnonzero(bad)[:most], np.flatnonzero(~bad)
    rest = min(most - len(first), len(others))
    spread = others[np.linspace(0, max(len(others) - 1, 0), rest).round().astype(int)]
    return np.sort(np.concatenate([first, spread])).tolist()


def _charts(images: Images, options: BrowseOptions) -> list[Chart]:
    """The charts of all images that can be trained on."""
    views = [(k, view) for k, one in enumerate(images.seen) if one.sound and (view := one.view)]
    found = [images.objects[k] for k, _ in views]
    rows = np.concatenate([np.zeros((0, 6)), *found])
    number = np.repeat(np.arange(len(views)), [len(one) for one in found])
    sizes = np.array([view.size[::-1] for _, view in views]).reshape(-1, 2)
    objects = Objects(rows[:, 0].astype(np.int64), number, rows[:, 1:5], sizes)
    charts = set_charts(objects, images.class_names)
    boxes = np.clip(objects.boxes / np.tile(sizes[number], 2), 0, 1)
    kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    if options.network and len(kept):
        charts.append(_reach(boxes, kept, objects, options.network, options))
    return charts


def _reach(boxes: np.ndarray, kept: np.ndarray, objects: Objects, network: str, options: BrowseOptions) -> Chart:
    """How many of the objects the anchors of a network reach: at most MOST_COMPARED of `kept` (k,), rows of normalised
    boxes (n, 4)."""
    size, resize = _input(network, options), Resize(options.resize_mode)
    if len(kept) > MOST_COMPARED:
        kept = np.sort(np.random.default_rng(SEED).choice(kept, MOST_COMPARED, replace=False))
    numbers, first = np.unique(objects.image[kept], return_index=True)
    own = np.split(boxes[kept], first[1:])  # of each image
    frames = [resize.frame(tuple(objects.sizes[number, ::-1]), size) for number in numbers]
    moved = [frame.move_boxes(some) for frame, some in zip(frames, own, strict=True)]
    placed = np.concatenate(moved).astype(np.float64)
    overlaps, threshold = anchor_reach(network, size, placed, **_given(options))
    sides = (placed[:, 2:] - placed[:, :2]) * (size[1], size[0])
    return reach_chart(sides, overlaps, threshold, f"{network}, input {size[0]} x {size[1]} ({options.resize_mode})")


def _input(network: str, options: BrowseOptions) -> Size:
    return input_size(options.data_shape or family_of(network).usual_sizes(network)[:1])


def _given(options: BrowseOptions) -> dict[str, Any]:
    """The network's own options."""
    return {name: getattr(options, name) for name in fields_of(network_options_class())}


def _write_pictures(folder: Path, charts: Sequence[Chart], images: Images) -> None:
    """Writes the charts and sheets of pictures into a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for chart in charts:
            save_figure(chart.figure, folder / f"{chart.name}.png", DPI)
        for number, pixels in enumerate(_sheets(images), 1):
            write_atomically(folder / f"pictures_{number:02d}.png", encode_png(pixels))
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error
    print(f"{folder}: {len(charts)} charts and sheets of pictures written")


def _sheets(images: Images) -> Iterator[np.ndarray]:
    """Sheets (h, w, 3) of the first pictures with their boxes."""
    shown = [(k, view) for k, one in enumerate(images.seen) if (view := one.view) and view.thumbnail]
    for begin in range(0, min(len(shown), SHEET_PICTURES * MOST_SHEETS), SHEET_PICTURES):
        yield sheet([_drawn(images, *one) for one in shown[begin : begin + SHEET_PICTURES]], SHEET_COLUMNS)


def _drawn(images: Images, number: int, view: View) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(view.thumbnail, np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = view.size
    return draw_objects(pixels, images.objects[number] / (1, width, height, width, height, 1), images.class_names)


if __name__ == "__main__":
    run_command(main)
