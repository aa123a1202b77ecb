"""Fits anchors to the objects of a record: for YOLOv3 in pixels of the input, for SSD sizes and ratios of each map.

python -m tools.anchors --train-path data/train.rec --network yolov3_spp --data-shape 416 --output my.yaml \\
    --picture anchors.png
"""

import importlib
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    importlib.import_module("as_module")

import numpy as np
import yaml
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from boxes.anchor_fit import Coverage, best_iou, coverage
from boxes.anchor_sets import AnchorSet, pixel_sizes
from common.errors import DataError, OptionError
from common.files import write_atomically
from common.sizes import Size, input_size
from config.command_line import parse_options
from config.groups import InputOptions
from config.options import from_mapping, option, same_option
from config.preset import read_preset
from dataset.letterbox import Resize
from dataset.record_source import object_boxes
from dataset.sidecar import read_sidecar
from drawing.figures import save_figure
from machine.command import run_command
from symbol.registry import family_of
from symbol.symbol_factory import get_anchors
from train.options import TrainOptions, network_options, train_options_class

EXAMPLE = "python tools/anchors.py --train-path data/train.rec --network yolov3_spp --data-shape 416 --output my.yaml"


@dataclass(frozen=True)
class AnchorsOptions:
    """Which objects to fit anchors to, for which network, and what to write."""

    train_path: str = option("data/train.rec", "record whose objects the anchors are for", "data")
    preset: str = option(
        "", "preset to copy, a name or file: its network, input and anchors are those before; '' = defaults", "network"
    )
    network: str | None = same_option(InputOptions, "network", "the preset's")
    data_shape: tuple[int, ...] | None = same_option(InputOptions, "data_shape", "the preset's")
    resize_mode: str | None = same_option(InputOptions, "resize_mode", "the preset's")
    threshold: float | None = option(
        None,
        "IoU above which an anchor counts as recalling an object (default: the one from which the network learns it)",
        "fit",
        minimum=0.0,
        maximum=1.0,
    )
    generations: int = option(1000, "mutations that are tried", "fit", minimum=0, maximum=1_000_000)
    max_objects: int = option(
        20_000, "objects to fit to, drawn at random if there are more; the figures are of all", "fit", minimum=1
    )
    seed: int = option(233, "another seed, other starts and mutations", "fit", minimum=0)
    output: str = option("", "preset (YAML) to write, with the new anchors", "output")
    picture: str = option("", "picture (PNG) to write: the objects' widths and heights with the anchors", "output")


DPI = 100
FONT_POINTS = 12
DOT_AREA, MARKER_AREA = 30, 110  # square points
OPAQUE_DOTS, LEAST_OPACITY, MOST_OPACITY = 1000, 0.05, 0.5  # dots are the paler the more there are
LEAST_SIDE = 1.0  # pixels of the lower end of the axes, for boxes without any
MARGIN = 1.15  # of the axes beyond the data
MOST_TICKS = 10
SHOWN = 20_000  # dots, every k-th object of larger sets
logger = logging.getLogger(__name__)


def anchors_of(run: TrainOptions) -> AnchorSet:
    """The anchors that train.py's options give its network; OptionError where they do not fit together."""
    network = run.input.network
    found = get_anchors(network, input_size(run.input.data_shape), **network_options(run))
    if found is None:
        raise OptionError(
            f"--network {network}: the anchors of {family_of(network).name} are fixed by the family; this tool is for "
            "networks whose anchors are options, as those of SSD and YOLOv3"
        )
    return found


def save_picture(path: Path, sizes: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
    """Draws sizes (n, 2) and anchors (k, 2), pixels, as a PNG that is replaced atomically.

    On the left widths and heights on logarithmic axes, on the right the fitted anchors as boxes of one centre.
    """
    with rc_context({"font.size": FONT_POINTS}):
        figure = Figure(figsize=(13, 7), layout="constrained")
        scatter, outlines = figure.subplots(1, 2)
        _draw_sizes(scatter, sizes, before, after)
        for width, height in after:
            outlines.add_patch(Rectangle((-width / 2, -height / 2), width, height, fill=False, edgecolor="tab:red"))
        half = after.max() * 0.55
        outlines.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", title="anchors after")
        outlines.set(xlabel="pixels of the input from the centre")
        figure.legend(*scatter.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        save_figure(figure, path, DPI)


def _draw_sizes(axes: Axes, sizes: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
    """Objects as translucent dots, anchors as markers above them."""
    dots = sizes[:: -(-len(sizes) // SHOWN)]
    opacity = float(np.clip(OPAQUE_DOTS / len(dots), LEAST_OPACITY, MOST_OPACITY))
    axes.scatter(
        dots[:, 0], dots[:, 1], s=DOT_AREA, alpha=opacity, color="tab:blue", linewidths=0, label=f"{len(sizes)} objects"
    )
    style: dict[str, Any] = {"s": MARKER_AREA, "linewidths": 2, "zorder": 3}
    axes.scatter(before[:, 0], before[:, 1], marker="x", color="black", label=f"{len(before)} anchors before", **style)
    axes.scatter(
        after[:, 0],
        after[:, 1],
        marker="s",
        facecolors="none",
        edgecolors="tab:red",
        label=f"{len(after)} after",
        **style,
    )
    everything = np.concatenate([dots, before, after])
    axes.set(xscale="log", yscale="log", xlabel="width, pixels of the input", ylabel="height, pixels of the input")
    for axis, values in ((axes.xaxis, everything[:, 0]), (axes.yaxis, everything[:, 1])):
        low, high = max(values.min(), LEAST_SIDE) / MARGIN, values.max() * MARGIN
        axis.set_ticks(plain_ticks(low, high))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_locator(NullLocator())
        axis.axes.set(**{f"{axis.axis_name}lim": (low, high)})
    axes.grid(True, linewidth=0.5, alpha=0.6)


def plain_ticks(low: float, high: float) -> list[float]:
    """Values of 1, 2, 5, 10, 20, ... within the bounds of a logarithmic axis; without the fives and twos where these
    would be more than MOST_TICKS, and other whole numbers where there would be fewer than two."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        ticks = [step * 10.0**k for k in decades for step in steps if low <= step * 10.0**k <= high]
        if len(ticks) <= MOST_TICKS:
            break
    if len(ticks) < 2:
        return sorted({float(math.ceil(low)), float(math.floor(high))})
    return ticks


@dataclass(frozen=True)
class Objects:
    """Objects of a record: corner boxes (n, 4) normalised to the input, sizes (n, 2) in its pixels, images."""

    boxes: np.ndarray
    sizes: np.ndarray
    images: int


def main(argv: list[str]) -> None:
    """Fits anchors, prints how well they cover the objects before and after, and writes preset and picture."""
    options = parse_options(
        AnchorsOptions, argv, "Fits a network's anchors to the objects of a record.", example=EXAMPLE
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    values = preset_values(options)
    run = from_mapping(train_options_class(), values)
    family = anchors_of(run)
    objects = _objects(options, run, family.size)
    fitted = family.fit(_drawn(objects.boxes, options), options.generations, options.seed)
    threshold = family.threshold if options.threshold is None else options.threshold
    lines = report(family, fitted, objects, threshold, run.input.resize_mode)
    print("\n".join(lines))
    if options.output:
        values |= fitted.options()
        _write(Path(options.output), preset_text(values, argv, lines).encode("utf-8"))
        read_preset(train_options_class(), options.output)
        print(f"{options.output} written; train with --config {options.output}")
    if options.picture:
        _make_folder(Path(options.picture))
        save_picture(Path(options.picture), objects.sizes, family.anchors(), fitted.anchors())
        print(f"{options.picture} written")


def preset_values(options: AnchorsOptions) -> dict[str, Any]:
    """{option: value} of the preset, with the options given here in place of its own."""
    values = read_preset(train_options_class(), options.preset, "--preset") if options.preset else {}
    for name in ("network", "data_shape", "resize_mode"):
        value = getattr(options, name)
        if value is not None:
            values[name] = list(value) if isinstance(value, tuple) else value
    return values


def report(family: AnchorSet, fitted: AnchorSet, objects: Objects, threshold: float, resize_mode: str) -> list[str]:
    """Lines for the user: coverage before and after, the anchors found as the options of train.py."""
    mode = f"{family.size[0]},{family.size[1]} ({resize_mode})"
    head = f"{len(objects.sizes)} objects in {objects.images} images, input {mode}, {len(fitted.anchors())} anchors"
    lines = [head, f"{'':<22}best possible recall (IoU > {threshold:g})  mean best IoU"]
    for name, one in (("before", family), ("after", fitted)):
        lines.append(_row(f"{name}, sizes alone", coverage(best_iou(objects.sizes, one.anchors()), threshold)))
    for name, one in (("before", family), ("after", fitted)):
        placed = one.placed_iou(objects.boxes)
        if placed is not None:
            lines.append(_row(f"{name}, at their places", coverage(placed, threshold)))
    return [*lines, *(f'--{name.replace("_", "-")} "{value}"' for name, value in fitted.options().items())]


def _row(name: str, found: Coverage) -> str:
    return f"{name:<22}{found.recall:>30.4f}{found.mean_iou:>21.4f}"


def preset_text(values: dict[str, Any], argv: Sequence[str], lines: Sequence[str]) -> str:
    """The preset: how it was made as a comment, then its options."""
    comment = [f"tools/anchors.py {' '.join(argv)}", *lines]
    body = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
    return "".join(f"# {' '.join(line.split())}\n" for line in comment) + body


def _objects(options: AnchorsOptions, run: TrainOptions, size: Size) -> Objects:
    """The objects of the record; OptionError where there are none."""
    sidecar = read_sidecar(options.train_path)
    resize = Resize(run.input.resize_mode, run.input.fill)
    found = object_boxes(options.train_path, len(sidecar.class_names) if sidecar else None, size, resize)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *found]).astype(np.float64)
    if not len(boxes):
        raise OptionError(f"--train-path {options.train_path}: has no objects to fit anchors to")
    return Objects(boxes, pixel_sizes(boxes, size), len(found))


def _drawn(boxes: np.ndarray, options: AnchorsOptions) -> np.ndarray:
    """At most options.max_objects of boxes (n, 4), chosen by the seed."""
    if len(boxes) <= options.max_objects:
        return boxes
    logger.info("fitting to %d of %d objects (--max-objects)", options.max_objects, len(boxes))
    return np.random.default_rng(options.seed).choice(boxes, options.max_objects, replace=False)


def _write(path: Path, content: bytes) -> None:
    _make_folder(path)
    write_atomically(path, content)


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    run_command(main)
