"""Draws a synthetic data set of four shapes in the layout of PASCAL VOC: the one that `make demo` trains on.

python -m tools.make_shapes --output shapes --train 400 --test 200 --size 240
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring  # noqa: S405 - written, not parsed

if not __package__:
    importlib.import_module("as_module")

import numpy as np

from common.errors import DataError
from config.command_line import parse_options
from config.options import option
from machine.command import run_command
from machine.opencv import cv2

EMPTY_SHARE = 0.08  # images without objects
MAX_OBJECTS = 6
MIN_SIDE, MAX_SIDE = 0.14, 0.6  # diameter of a shape relative to the image, log-uniform
MIN_VISIBLE_SIDE = 0.09  # of the visible part
MIN_VISIBLE = 0.25  # share of a shape that later ones must leave visible
DIFFICULT_BELOW = 0.55  # visible share below which an object is difficult
JPEG_QUALITY = 90
PLACEMENTS = 20  # tries for each object
SUBPIXEL = 4  # fractional bits of OpenCV's drawing coordinates


@dataclass(frozen=True)
class ShapesOptions:
    """What to draw."""

    output: str = option("data/shapes", "folder to write: Annotations/, JPEGImages/, ImageSets/Main/")
    train: int = option(400, "images of the set trainval", minimum=1)
    test: int = option(200, "images of the set test", minimum=1)
    size: int = option(240, "side of the square images in pixels", minimum=64, maximum=4096)
    seed: int = option(0, "another seed, other images", minimum=0)


@dataclass(frozen=True)
class Shape:
    """A class: its corners for a random generator, (k, 2) within the unit circle, and its hue (OpenCV's 0..179)."""

    name: str
    corners: Callable[[np.random.Generator], np.ndarray]
    hue: int


@dataclass
class Drawn:
    """A shape in an image: class name, the mask as drawn and what later shapes leave visible of it, bool (s, s)."""

    name: str
    mask: np.ndarray
    visible: np.ndarray

    @property
    def share(self) -> float:
        """The visible share of what lies inside the image."""
        return float(self.visible.sum() / max(1, self.mask.sum()))

    def box(self) -> tuple[int, int, int, int]:
        """xmin, ymin, xmax, ymax of the visible pixels, counted from 1, both ends included."""
        columns, rows = np.flatnonzero(self.visible.any(axis=0)), np.flatnonzero(self.visible.any(axis=1))
        return int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1


def _polygon(radii: list[float], tilt: float = np.pi) -> Callable[[np.random.Generator], np.ndarray]:
    """Corners at equal angles with the given radii, turned by up to +-tilt from upright."""

    def corners(rng: np.random.Generator) -> np.ndarray:
        angles = np.arange(len(radii)) * 2 * np.pi / len(radii) + rng.uniform(-tilt, tilt)
        return np.array(radii)[:, None] * np.column_stack([np.sin(angles), -np.cos(angles)])

    return corners


SHAPES = (
    Shape("circle", _polygon([1.0] * 72), hue=108),  # blue
    Shape("square", _polygon([1.0] * 4), hue=2),  # red
    Shape("star", _polygon([1.0, 0.45] * 5), hue=27),  # yellow
    Shape("triangle", _polygon([1.0] * 3), hue=62),  # green
)
HUE_SPREAD = 9


def main(argv: list[str]) -> None:
    """Draws both sets; the files of image names come last."""
    options = parse_options(
        ShapesOptions,
        argv,
        "Draws a synthetic data set in the layout of PASCAL VOC.",
        example="python tools/make_shapes.py --output shapes --train 400 --test 200 --size 240",
    )
    root = Path(options.output)
    try:
        write_dataset(root, {"trainval": options.train, "test": options.test}, options.size, options.seed)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be written ({error.strerror}); see --output") from error
    print(f"{root}: {options.train} images in trainval, {options.test} in test, {options.size} x {options.size} pixels")


def write_dataset(root: Path, sets: dict[str, int], size: int, seed: int) -> None:
    """Writes {set: number of images}; image k of a set depends on (seed, set, k, size) alone."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, (image_set, count) in enumerate(sets.items()):
        names = [f"{image_set}_{k:05d}" for k in range(count)]
        for k, name in enumerate(names):
            image, objects = draw_image(np.random.default_rng((seed, number, k)), size)
            jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            (root / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg.tobytes())
            (root / "Annotations" / f"{name}.xml").write_bytes(annotation(name, size, objects))
        (root / "ImageSets" / "Main" / f"{image_set}.txt").write_text("\n".join(names) + "\n")


def draw_image(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[Drawn]]:
    """One image, uint8 (size, size, 3) BGR, and its objects in the order in which they were drawn."""
    image = _background(rng, size)
    objects: list[Drawn] = []
    wanted = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, MAX_OBJECTS + 1))
    for _ in range(wanted):
        shape = SHAPES[rng.integers(len(SHAPES))]
        cover = _place(rng, shape, size, objects)
        if cover is None:  # the image is full
            continue
        _paint(rng, image, cover, shape.hue)
        mask = cover > 0.5
        for earlier in objects:
            earlier.visible &= ~mask
        objects.append(Drawn(shape.name, mask, mask.copy()))
    noise = rng.integers(-6, 7, image.shape, np.int8)
    return np.clip(image + noise, 0, 255).astype(np.uint8), objects


def annotation(name: str, size: int, objects: list[Drawn]) -> bytes:
    """The VOC XML of an image."""
    root = Element("annotation")
    SubElement(root, "filename").text = f"{name}.jpg"
    dimensions = SubElement(root, "size")
    for tag, value in (("width", size), ("height", size), ("depth", 3)):
        SubElement(dimensions, tag).text = str(value)
    for drawn in objects:
        element = SubElement(root, "object")
        SubElement(element, "name").text = drawn.name
        SubElement(element, "difficult").text = str(int(drawn.share < DIFFICULT_BELOW))
        box = SubElement(element, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), drawn.box(), strict=True):
            SubElement(box, tag).text = str(value)
    indent(root)
    return tostring(root) + b"\n"


def _place(rng: np.random.Generator, shape: Shape, size: int, objects: list[Drawn]) -> np.ndarray | None:
    """Cover float32 (size, size) in [0, 1] of a shape at a place that hides no earlier one; None if none was found."""
    for _ in range(PLACEMENTS):
        radius = size * np.exp(rng.uniform(np.log(MIN_SIDE), np.log(MAX_SIDE))) / 2
        centre = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)  # some are cut off by the border
        corners = centre + radius * shape.corners(rng)
        canvas = np.zeros((size, size), np.uint8)
        fixed = np.round((corners - 0.5) * (1 << SUBPIXEL)).astype(np.int32)
        cv2.fillPoly(canvas, [fixed], 255, cv2.LINE_AA, SUBPIXEL)
        if _fits(canvas > 127, objects, size):
            return canvas.astype(np.float32) / 255
    return None


def _fits(mask: np.ndarray, objects: list[Drawn], size: int) -> bool:
    """Whether everything stays visible enough to be found."""
    after = [Drawn(drawn.name, drawn.mask, drawn.visible & ~mask) for drawn in objects]
    if any(drawn.share < MIN_VISIBLE for drawn in after):
        return False
    after.append(Drawn("", mask, mask))
    sides = [(xmax - xmin + 1, ymax - ymin + 1) for xmin, ymin, xmax, ymax in (drawn.box() for drawn in after)]
    return bool(np.min(sides) >= MIN_VISIBLE_SIDE * size)


def _paint(rng: np.random.Generator, image: np.ndarray, cover: np.ndarray, hue: int) -> None:
    """Lays a shape with a gradient of brightness and a colour of its family over the image, in place."""
    size = len(image)
    colour = np.array(
        [[[(hue + rng.integers(-HUE_SPREAD, HUE_SPREAD + 1)) % 180, rng.integers(150, 256), 255]]], np.uint8
    )
    bgr = cv2.cvtColor(colour, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)
    x, y = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0.6, 0.95) + rng.uniform(0, 0.25) * (np.cos(angle) * x + np.sin(angle) * y)
    rows, columns = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image[window] += cover[window][..., None] * (light[window][..., None] * bgr - image[window])


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates from -0.5 to 0.5, float32 (size, size) each."""
    line = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    return np.broadcast_to(line, (size, size)), np.broadcast_to(line[:, None], (size, size))


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Blotches of muted colours, waves of brightness and a few thin lines; float32 (size, size, 3)."""
    cells = int(rng.integers(2, 12))
    grey = rng.uniform(40, 210) + rng.uniform(-45, 45, (cells, cells, 1))
    blotches = grey + rng.uniform(-1, 1, (cells, cells, 3)) * rng.uniform(5, 35)
    image = cv2.resize(blotches.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    x, y = _grid(size)
    angle, waves = rng.uniform(0, np.pi), rng.uniform(3, 40)
    wave = np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y))
    image += (rng.uniform(0, 25) * wave)[..., None]
    for _ in range(int(rng.integers(0, 5))):
        ends = rng.integers(0, size, (2, 2)).tolist()
        cv2.line(image, ends[0], ends[1], [rng.uniform(20, 230)] * 3, int(rng.integers(1, 4)), cv2.LINE_AA)
    return np.clip(image, 0, 255)


if __name__ == "__main__":
    run_command(main)
