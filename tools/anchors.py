"""Fits anchors to the objects of a record: for YOLOv3 in pixels of the input, for SSD sizes and ratios of each map.

python -m tools.anchors --train-path data/train.rec --network yolov3_spp --data-shape 416 --output my.yaml \\
    --picture anchors.png
"""

import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

if not __package__:
    importlib.import_module("as_module")

import numpy as np
import yaml
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from boxes.anchor_fit import Coverage, MapShape, Places, best_iou, coverage, fit_anchors, fit_ssd, quality, ssd_sizes
from boxes.anchors import AnchorLayer, cell_centres, multibox_prior
from boxes.geometry import iou
from common.errors import DataError, OptionError
from common.files import write_atomically
from common.sizes import Size, input_size
from config.augment_options import RESIZE_MODES
from config.command_line import parse_options
from config.options import from_mapping, option
from config.preset import read_preset
from dataset.letterbox import Resize
from dataset.record_source import object_boxes
from dataset.sidecar import read_sidecar
from drawing.figures import save_figure
from machine.command import run_command
from symbol.darknet_sections import Yolo
from symbol.detector.yolo import customise
from symbol.registry import family_of
from symbol.symbol_factory import get_assigner
from train.options import TrainOptions, network_options, train_options_class


@dataclass(frozen=True)
class AnchorsOptions:
    """Which objects to fit anchors to, for which network, and what to write."""

    train_path: str = option("data/train.rec", "record whose objects the anchors are for", "data")
    preset: str = option(
        "", "preset to copy, a name or file: its network, input and anchors are those before; '' = defaults", "network"
    )
    network: str | None = option(None, "network (default: the preset's)", "network")
    data_shape: tuple[int, ...] | None = option(
        None, "input side, or height,width (default: the preset's)", "network", minimum=32, maximum=8192
    )
    resize_mode: str | None = option(
        None,
        "how images fill the input: force or letterbox (default: the preset's)",
        "network",
        choices=RESIZE_MODES,
    )
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


CHUNK = 256  # objects compared with all placed anchors at a time
SIZE_DIGITS, RATIO_DIGITS, PIXEL_DIGITS = 4, 3, 1
DPI = 90
DOT_AREA = 6
SHOWN = 20_000  # dots, every k-th object of larger sets
logger = logging.getLogger(__name__)


class AnchorFamily(Protocol):
    """A network's anchors for an input `size` (H, W); threshold: IoU above which they learn an object."""

    @property
    def size(self) -> Size:
        """(H, W) of the input."""

    @property
    def resize_mode(self) -> str:
        """How images fill it."""

    @property
    def threshold(self) -> float:
        """IoU above which an anchor learns an object."""

    def anchors(self) -> np.ndarray:
        """Sizes (k, 2) in pixels of the input."""

    def placed_iou(self, boxes: np.ndarray) -> np.ndarray | None:
        """IoU (n,) of normalised boxes (n, 4) with the best anchor at its place; None for YOLO, which has none."""

    def fit(self, boxes: np.ndarray, generations: int, seed: int) -> "AnchorFamily":
        """The same with anchors fitted to normalised boxes (n, 4); never worse than before, but for rounding."""

    def options(self) -> dict[str, Any]:
        """Options of train.py that give the network these anchors."""


@dataclass(frozen=True)
class YOLOFamily:
    """Anchors of a YOLOv3: (k, 2) pixels, the smallest first."""

    size: Size
    resize_mode: str
    threshold: float
    pixels: np.ndarray

    def anchors(self) -> np.ndarray:
        """Sizes (k, 2) in pixels of the input."""
        return self.pixels

    def placed_iou(self, boxes: np.ndarray) -> np.ndarray | None:
        """None: a YOLO anchor has no place of its own."""
        return None

    def fit(self, boxes: np.ndarray, generations: int, seed: int) -> "YOLOFamily":
        """As many anchors, fitted to the sizes of normalised boxes (n, 4)."""
        found = fit_anchors(pixel_sizes(boxes, self.size), len(self.pixels), generations, seed, self.pixels)
        return replace(self, pixels=np.maximum(np.round(found, PIXEL_DIGITS), 10.0**-PIXEL_DIGITS))

    def options(self) -> dict[str, Any]:
        """--yolo-anchors."""
        return {"yolo_anchors": ", ".join(f"{w:.10g},{h:.10g}" for w, h in self.pixels)}


@dataclass(frozen=True)
class SSDFamily:
    """Anchors of an SSD, a layer for each map of (h, w) cells."""

    size: Size
    resize_mode: str
    threshold: float
    layers: tuple[AnchorLayer, ...]
    feature_shapes: tuple[Size, ...]

    def anchors(self) -> np.ndarray:
        """Sizes (k, 2) in pixels of the input, where the maps have the proportions of the input."""
        return ssd_sizes([(layer.sizes, layer.ratios) for layer in self.layers]) * self.size[0]

    def placed_iou(self, boxes: np.ndarray) -> np.ndarray:
        """IoU (n,) of normalised corner boxes (n, 4) with the best of MultiBoxPrior's boxes."""
        pairs = zip(self.feature_shapes, self.layers, strict=True)
        placed = np.concatenate([multibox_prior(shape, layer) for shape, layer in pairs]).astype(np.float64)
        starts = range(0, len(boxes), CHUNK)
        return np.concatenate([iou(boxes[k : k + CHUNK], placed).max(axis=1) for k in starts])

    def fit(self, boxes: np.ndarray, generations: int, seed: int) -> "SSDFamily":
        """As many sizes and ratios for each map, fitted to normalised boxes (n, 4) and the places of the cells.

        The same as before where nothing better is found.
        """
        shapes = [MapShape(len(layer.sizes), len(layer.ratios)) for layer in self.layers]
        before = [(layer.sizes, layer.ratios) for layer in self.layers]
        sizes = pixel_sizes(boxes, self.size) / self.size[0]
        found = fit_ssd(sizes, shapes, generations, seed, before, self._places(boxes), self.threshold)
        layers = tuple(
            replace(layer, sizes=_rounded(own, SIZE_DIGITS), ratios=_rounded(ratios, RATIO_DIGITS))
            for layer, (own, ratios) in zip(self.layers, found, strict=True)
        )
        fitted = replace(self, layers=layers)
        old, new = (quality(family.placed_iou(boxes), self.threshold) for family in (self, fitted))
        return fitted if new > old else self

    def _places(self, boxes: np.ndarray) -> Places:
        height, width = self.size
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2  # (n, 2)
        offsets, widths = [], []
        for (rows, columns), layer in zip(self.feature_shapes, self.layers, strict=True):
            y, x = cell_centres((rows, columns), layer)
            gaps = [np.abs(centres[:, axis, None] - cells).min(axis=1) for axis, cells in enumerate((x, y))]
            offsets.append(np.stack(gaps, axis=1) * (width / height, 1))  # (n, 2)
            widths.append(rows / columns * width / height)
        return Places(np.stack(offsets), np.array(widths))

    def options(self) -> dict[str, Any]:
        """--anchor-sizes and --anchor-ratios."""
        return {
            "anchor_sizes": _lists([layer.sizes for layer in self.layers]),
            "anchor_ratios": _lists([layer.ratios for layer in self.layers]),
        }


def pixel_sizes(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Widths and heights (n, 2) in pixels of normalised corner boxes (n, 4) in an input of size (H, W)."""
    return (boxes[:, 2:] - boxes[:, :2]) * (size[1], size[0])


def anchors_of(run: TrainOptions) -> AnchorFamily:
    """The anchors that train.py's options give its network; OptionError where the options do not fit together."""
    network = run.input.network
    family = family_of(network)
    fitted: dict[str, Callable[[TrainOptions], AnchorFamily]] = {family.FRACTIONS: _ssd, family.PIXELS: _yolo}
    if family.anchors not in fitted:
        raise OptionError(
            f"--network {network}: the anchors of {family.name} are {family.anchors}; this tool is for networks whose "
            f"anchors are {' or '.join(fitted)}"
        )
    return fitted[family.anchors](run)


def _yolo(run: TrainOptions) -> YOLOFamily:
    network, size = run.input.network, input_size(run.input.data_shape)
    options: Any = run.net
    assigner: Any = get_assigner(network, size, 1, **network_options(run))  # refuses what the network cannot take
    sections = customise(family_of(network).row(network, size, options), options)
    anchors = next(section.anchors for section in sections if isinstance(section, Yolo))
    return YOLOFamily(size, run.input.resize_mode, assigner.iou_threshold, np.array(anchors, float))


def _ssd(run: TrainOptions) -> SSDFamily:
    size = input_size(run.input.data_shape)
    assigner: Any = get_assigner(run.input.network, size, 1, **network_options(run) | {"targets": "paper"})
    shapes = assigner.feature_shapes[size]
    return SSDFamily(size, run.input.resize_mode, assigner.threshold, assigner.layers, shapes)


def _rounded(values: np.ndarray, digits: int) -> tuple[float, ...]:
    """Rounded values, none of them 0."""
    return tuple(np.maximum(np.round(values, digits), 10.0**-digits).tolist())


def _lists(rows: Sequence[Sequence[float]]) -> str:
    return "; ".join(",".join(f"{value:.10g}" for value in row) for row in rows)


def save_picture(path: Path, sizes: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
    """Draws sizes (n, 2) and anchors (k, 2), pixels, as a PNG that is replaced atomically.

    On the left widths and heights on logarithmic axes, on the right the fitted anchors as boxes of one centre.
    """
    figure = Figure(figsize=(12, 6), layout="constrained")
    scatter, outlines = figure.subplots(1, 2)
    dots = sizes[:: -(-len(sizes) // SHOWN)]
    scatter.scatter(*dots.T, s=DOT_AREA, alpha=0.35, color="0.55", linewidths=0, label=f"{len(sizes)} objects")
    scatter.scatter(*before.T, s=60, marker="x", color="tab:blue", label="anchors before")
    scatter.scatter(*after.T, s=70, marker="o", facecolors="none", edgecolors="tab:red", linewidths=2, label="after")
    scatter.set(xscale="log", yscale="log", xlabel="width, pixels of the input", ylabel="height, pixels of the input")
    scatter.grid(True, which="both", linewidth=0.3)
    scatter.legend()
    for width, height in after:
        outlines.add_patch(Rectangle((-width / 2, -height / 2), width, height, fill=False, edgecolor="tab:red"))
    half = after.max() * 0.55
    outlines.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", title="anchors after")
    save_figure(figure, path, DPI)


@dataclass(frozen=True)
class Objects:
    """Objects of a record: corner boxes (n, 4) normalised to the input, sizes (n, 2) in its pixels, images."""

    boxes: np.ndarray
    sizes: np.ndarray
    images: int


def main(argv: list[str]) -> None:
    """Fits anchors, prints how well they cover the objects before and after, and writes preset and picture."""
    options = parse_options(AnchorsOptions, argv, "Fits a network's anchors to the objects of a record.")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    values = preset_values(options)
    run = from_mapping(train_options_class(), values)
    family = anchors_of(run)
    objects = _objects(options, run, family.size)
    fitted = family.fit(_drawn(objects.boxes, options), options.generations, options.seed)
    threshold = family.threshold if options.threshold is None else options.threshold
    lines = report(family, fitted, objects, threshold)
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


def report(family: AnchorFamily, fitted: AnchorFamily, objects: Objects, threshold: float) -> list[str]:
    """Lines for the user: coverage before and after, the anchors found as the options of train.py."""
    mode = f"{family.size[0]},{family.size[1]} ({family.resize_mode})"
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
