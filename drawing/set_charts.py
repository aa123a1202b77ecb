"""Charts of the objects of a data set: classes, sizes, proportions, places, and how many the anchors reach.

Two colours that everybody can tell apart, one scale of brightness; each chart is as wide as a telephone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SMALL_AREA, LARGE_AREA = 32**2, 96**2  # pixels of the image: COCO's medium objects are between them
BLUE, ORANGE = "#0072B2", "#E69F00"  # Okabe and Ito, Color universal design (2008)
WIDTH, HEIGHT = 4.7, 3.3  # inches
FONT_POINTS = 10
BAR_INCHES = 0.36  # of a class
MOST_CLASSES, MOST_LETTERS = 30, 20
LEAST_CELLS, MOST_CELLS = 12, 40  # of a map along a side
MOST_SINGLE = 40  # numbers of objects that have a bar each
STEPS = 4  # bars of an octave of sizes
LEAST_SHARE = -3.0  # of an image's side, as a power of ten
MOST_RATIO = 4.0  # 16:1, as a power of two
INPUT_SIDES = np.array([0, 8, 16, 32, 64, 128, 256, np.inf])  # pixels of the network's input


@dataclass(frozen=True)
class Objects:
    """Objects of a data set: ids (n,) of classes, the number of the image of each (n,), corner boxes (n, 4) in its
    pixels; sizes (images, 2): width and height of each image."""

    ids: np.ndarray
    image: np.ndarray
    boxes: np.ndarray
    sizes: np.ndarray

    @property
    def sides(self) -> np.ndarray:
        """Widths and heights (n, 2) in pixels of the image, at least a thousandth."""
        return np.maximum(self.boxes[:, 2:] - self.boxes[:, :2], 1e-3)


class Chart(NamedTuple):
    """A figure, the name of its file, its title and a sentence about it."""

    name: str
    title: str
    text: str
    figure: Figure


def set_charts(objects: Objects, class_names: Sequence[str]) -> list[Chart]:
    """The charts of a data set, of all images together; () without objects."""
    with rc_context({"font.size": FONT_POINTS}):
        return list(_charts(objects, class_names)) if len(objects.ids) else []


def _charts(objects: Objects, class_names: Sequence[str]) -> Iterator[Chart]:
    yield _classes(objects, class_names)
    yield _chart("per_image", "Objects of an image", _per_image, objects)
    yield _chart("sizes", "Sizes: square root of the area", _sizes, objects)
    yield _chart("sides", "Widths and heights as parts of the image", _shares, objects)
    yield _chart("proportions", "Proportions, width : height", _proportions, objects)
    yield _chart("centres", "Where the centres are", _centres, objects)


def _chart(name: str, title: str, draw: Callable[[Axes, Objects], str], objects: Objects) -> Chart:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    return Chart(name, title, draw(figure.subplots(), objects), figure)


def _classes(objects: Objects, class_names: Sequence[str]) -> Chart:
    """Objects and images of each class, the most frequent first."""
    counts = np.bincount(objects.ids, minlength=len(class_names))
    pairs = np.unique(np.stack([objects.ids, objects.image]), axis=1)
    images = np.bincount(pairs[0], minlength=len(class_names))
    order = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    figure = Figure(figsize=(WIDTH, 1.0 + BAR_INCHES * len(order)), layout="constrained")
    axes, rows = figure.subplots(), np.arange(len(order))
    for shift, values, colour, label in ((-0.2, counts, BLUE, "objects"), (0.2, images, ORANGE, "images")):
        bars = axes.barh(rows + shift, values[order], 0.4, color=colour, label=label)
        axes.bar_label(bars, [f"{value:,}" for value in values[order]], padding=2, fontsize=FONT_POINTS - 2)
    axes.set_yticks(rows, [plain_name(class_names[k]) for k in order], parse_math=False)
    axes.set(ylim=(len(order) - 0.5, -0.5), xlim=(0, counts.max() * 1.2))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    _bare(axes)
    text = f"Objects: {len(objects.ids):,}, classes that occur: {np.count_nonzero(counts)} of {len(class_names)}."
    if len(class_names) > MOST_CLASSES:
        text += f" The {MOST_CLASSES} most frequent are shown."
    return Chart("classes", "Objects and images of each class", text, figure)


def _per_image(axes: Axes, objects: Objects) -> str:
    counts = np.bincount(objects.image, minlength=len(objects.sizes))
    most = int(counts.max())
    bins = np.arange(-0.5, most + 1) if most <= MOST_SINGLE else np.linspace(0, most + 1, 31)
    _histogram(axes, counts, bins)
    axes.set(xlabel="objects", ylabel="images")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _bare(axes)
    return f"Median {np.median(counts):g}, most {most}, images without objects: {np.count_nonzero(counts == 0):,}."


def _sizes(axes: Axes, objects: Objects) -> str:
    areas = objects.sides.prod(axis=1)
    low, high = np.floor(np.log2(max(areas.min(), 1)) / 2), np.ceil(np.log2(max(areas.max(), 2)) / 2 + 0.01)
    bins = 2 ** np.arange(low, high + 1 / STEPS, 1 / STEPS)
    _histogram(axes, np.sqrt(areas), bins)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for side in (SMALL_AREA**0.5, LARGE_AREA**0.5):
        if bins[0] < side < bins[-1]:
            axes.axvline(side, color=ORANGE, linestyle="--")
    axes.set(xlabel="pixels of the image", ylabel="objects")
    _bare(axes)
    small, large = (areas < SMALL_AREA).mean(), (areas >= LARGE_AREA).mean()
    return (
        f"Small (below 32 x 32) {small:.0%}, medium {1 - small - large:.0%}, large (96 x 96 and more) {large:.0%}; the "
        "dashed lines are COCO's bounds."
    )


def _shares(axes: Axes, objects: Objects) -> str:
    """A map of log10 of widths and heights."""
    shares = objects.sides / objects.sizes[objects.image]
    _map(axes, np.log10(shares).clip(LEAST_SHARE, 0), (LEAST_SHARE, 0, LEAST_SHARE, 0), MOST_CELLS)
    ticks = [-3, -2, -1, 0]
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks(ticks, [f"{100 * 10.0**tick:g} %" for tick in ticks])
    axes.set(xlabel="width", ylabel="height")
    width, height = np.median(shares, axis=0)
    return f"Median: {width:.1%} of the image's width, {height:.1%} of its height. The scale is logarithmic."


def _proportions(axes: Axes, objects: Objects) -> str:
    sides = objects.sides
    ratios = np.log2(sides[:, 0] / sides[:, 1])
    bins = np.linspace(-MOST_RATIO, MOST_RATIO, 49)
    _histogram(axes, ratios, bins)
    ticks = range(-4, 5)
    axes.set_xticks(ticks, [f"{2**k}:1" if k >= 0 else f"1:{2**-k}" for k in ticks])
    axes.set(xlabel="width : height", ylabel="objects")
    _bare(axes)
    low, middle, high = 2 ** np.quantile(ratios, (0.1, 0.5, 0.9))
    return f"Median {middle:.2f}; eight of ten are between {low:.2f} and {high:.2f}."


def _centres(axes: Axes, objects: Objects) -> str:
    centres = (objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2 / objects.sizes[objects.image]
    cells = int(np.clip(len(centres) ** 0.5 / 3, LEAST_CELLS, MOST_CELLS))  # ten objects in each
    _map(axes, centres.clip(0, 1), (0, 1, 0, 1), cells)
    axes.invert_yaxis()
    ticks = [0, 0.25, 0.5, 0.75, 1]
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axes.set(xlabel="of the image's width", ylabel="of its height")
    return "Centres of the boxes as parts of their image, upper left to lower right."


def reach_chart(sides: np.ndarray, overlaps: np.ndarray, threshold: float, what: str) -> Chart:
    """The share of objects that anchors reach, by size.

    sides: (n, 2) in pixels of the network's input; overlaps: (n,) IoU with the best anchor; threshold: IoU from which
    an anchor learns an object; what: the network and its input, for the text.
    """
    reached = overlaps >= threshold
    place = np.digitize(np.sqrt(sides.prod(axis=1)), INPUT_SIDES) - 1
    total = np.bincount(place, minlength=len(INPUT_SIDES) - 1)
    shares = np.bincount(place, reached, minlength=len(total)) / np.maximum(total, 1)
    with rc_context({"font.size": FONT_POINTS}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        bars = axes.bar(range(len(total)), shares * 100, 0.75, color=BLUE)
        labels = [f"{share:.0%}\nof {count:,}" if count else "" for share, count in zip(shares, total, strict=True)]
        axes.bar_label(bars, labels, padding=2, fontsize=FONT_POINTS - 2)
        axes.set_xticks(np.arange(len(total)) - 0.5, [f"{side:g}" for side in INPUT_SIDES[:-1]])
        axes.set(
            xlabel="square root of the area, pixels of the input",
            ylabel="reached, %",
            ylim=(0, 128),
            yticks=range(0, 101, 25),
        )
        _bare(axes)
    text = (
        f"{what}: the best anchor of {reached.mean():.1%} of {len(reached):,} objects has an IoU of {threshold:g} or "
        f"more with it; mean {overlaps.mean():.2f}."
    )
    return Chart("reach", "Objects that the anchors reach", text, figure)


def plain_name(name: str) -> str:
    """A name of a class that fits beside a bar."""
    shown = name.encode("utf-8", "replace").decode("utf-8")
    return shown if len(shown) <= MOST_LETTERS else f"{shown[: MOST_LETTERS - 1]}…"


def _map(axes: Axes, points: np.ndarray, extent: tuple[float, float, float, float], cells: int) -> None:
    """How many of points (n, 2) are in each of cells x cells parts of an area (left, right, low, high)."""
    x, y = points.T
    counts, _, _ = np.histogram2d(y, x, cells, (extent[2:], extent[:2]))
    shown = np.ma.masked_equal(counts, 0)
    norm = LogNorm(1, max(2.0, counts.max()))
    drawn = axes.imshow(
        shown, cmap="cividis_r", norm=norm, origin="lower", extent=extent, aspect="auto", interpolation="none"
    )
    bar = axes.figure.colorbar(drawn, ax=axes, format=lambda value, _: f"{value:g}")
    bar.set_label("objects")
    bar.minorticks_off()


def _histogram(axes: Axes, values: np.ndarray, bins: np.ndarray) -> None:
    """How many values (n,) are between the bounds `bins`; those beyond count in the outermost bars."""
    axes.hist(values.clip(bins[0], bins[-1]), bins.tolist(), color=BLUE, edgecolor="white", linewidth=0.4)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
