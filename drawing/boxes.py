"""Boxes with labels on pictures, and heat maps: how sure a model is of finding something at each pixel."""

import colorsys
import unicodedata
from collections.abc import Sequence

import numpy as np

from machine.opencv import cv2

Colour = tuple[int, int, int]
FONT = cv2.FONT_HERSHEY_SIMPLEX
GOLDEN_RATIO = 0.618034  # successive multiples of it, modulo 1, spread hues evenly for any number of classes
# Sizes grow with the square root of the area; these are right for REFERENCE_SIDE squared.
REFERENCE_SIDE = 600.0
FONT_SCALE, LEAST_FONT_SCALE = 0.5, 0.33  # 0.33: letters of 7 pixels, the smallest that can be read
LINE = 2.0
HIGHEST_SCORE = 1 - 1e-6  # log(1 - score) stays finite
HEAT_SHARE = 0.5  # of the colours in the picture
GREY = 114  # between the pictures of a sheet
READABLE_SIDE = 320  # pixels: images of a batch are enlarged by a whole factor up to it, so that labels do not hide
# them, or shrunk to it
CAPTION_HEIGHT, CAPTION_FONT = 24, 0.5
GAP = 4  # pixels between the images of a batch


def draw(
    image: np.ndarray, detections: np.ndarray, class_names: Sequence[str] = (), threshold: float = 0.0
) -> np.ndarray:
    """A copy of an image (h, w, 3) uint8 RGB with boxes and labels like `cat 0.87`.

    Args:
        image: stays as it is.
        detections: (n, 6) rows [id, score, xmin, ymin, xmax, ymax] in pixels, as Detector gives them.
        class_names: names in the order of the ids; an id beyond them is shown as a number.
        threshold: lowest score to show.

    Labels lie on top of boxes, and the best detection on top of the others. Letters that OpenCV's font lacks appear
    without accents or as `?`.
    """
    picture = np.ascontiguousarray(image).copy()
    shown = sorted((row for row in detections if row[1] >= threshold), key=lambda row: row[1])
    for row in shown:
        _draw_box(picture, row[2:], colour_of(int(row[0])))
    for row in shown:
        number = int(row[0])
        _draw_label(picture, row[2:], f"{_plain(_name(number, class_names))} {row[1]:.2f}", colour_of(number))
    return picture


def _name(number: int, class_names: Sequence[str]) -> str:
    return class_names[number] if number < len(class_names) else str(number)


def draw_objects(image: np.ndarray, objects: np.ndarray, class_names: Sequence[str] = ()) -> np.ndarray:
    """A copy of an image (h, w, 3) uint8 RGB with labelled objects and the names of their classes.

    objects: (n, 5 or more) rows [id, xmin, ymin, xmax, ymax, ...], corners as parts of the image; rows with an id below
    0 are none.
    """
    picture = np.ascontiguousarray(image).copy()
    height, width = picture.shape[:2]
    shown = [(int(row[0]), row[1:5] * (width, height, width, height)) for row in objects if row[0] >= 0]
    for number, box in shown:
        _draw_box(picture, box, colour_of(number))
    for number, box in shown:
        _draw_label(picture, box, _plain(_name(number, class_names)), colour_of(number))
    return picture


def sheet(pictures: Sequence[np.ndarray], columns: int = 4, gap: int = 0) -> np.ndarray:
    """Pictures (h, w, 3) uint8 in rows of so many columns, from the upper left on; places are as large as the largest
    one, what is left is grey. gap: white pixels between the places."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    found = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for k in range(rows * columns):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        found[top : top + height, left : left + width] = GREY
    for k, picture in enumerate(pictures):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        found[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return found


def input_images(pixels: np.ndarray, mean: np.ndarray, std: np.ndarray) -> list[np.ndarray]:
    """Inputs of a network (n, 3, H, W) as images (h, w, 3) uint8 RGB whose longer side is READABLE_SIDE at most.

    mean, std: (3,), with which the pixels were normalised. Values that are not finite are black.
    """
    values = pixels.transpose(0, 2, 3, 1) * std + mean  # (n, H, W, 3)
    images = np.rint(np.clip(np.nan_to_num(values, posinf=0, neginf=0), 0, 255)).astype(np.uint8)
    longer = max(pixels.shape[2:])
    if longer <= READABLE_SIDE:
        factor = READABLE_SIDE // longer
        return list(images.repeat(factor, axis=1).repeat(factor, axis=2))
    height, width = (max(1, round(side * READABLE_SIDE / longer)) for side in pixels.shape[2:])
    return [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in images]


def batch_sheet(
    pixels: np.ndarray, objects: np.ndarray, mean: np.ndarray, std: np.ndarray, class_names: Sequence[str] = ()
) -> np.ndarray:
    """A sheet of a batch's images, as input_images has them, with their objects (n, M, 6), as draw_objects draws.

    White lines stand between the images, whose grey borders would run into one another.
    """
    images = input_images(pixels, mean, std)
    drawn = [draw_objects(image, own, class_names) for image, own in zip(images, objects, strict=True)]
    return sheet(drawn, gap=GAP)


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """A picture (h, w, 3) uint8 below a white line of text."""
    line = np.full((CAPTION_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    place = (CAPTION_HEIGHT // 4, CAPTION_HEIGHT * 3 // 4)
    cv2.putText(line, _plain(text), place, FONT, CAPTION_FONT, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([line, picture])


def png_of(picture: np.ndarray) -> bytes:
    """A picture (h, w, 3) uint8 RGB as a PNG file."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def colour_of(number: int) -> Colour:
    """A bright RGB colour for a class id, always the same one."""
    hue = number * GOLDEN_RATIO % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _scale(picture: np.ndarray) -> float:
    """The picture's size relative to the one that FONT_SCALE and LINE are for."""
    return (picture.shape[0] * picture.shape[1]) ** 0.5 / REFERENCE_SIDE


def _draw_box(picture: np.ndarray, box: np.ndarray, colour: Colour) -> None:
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    corner = min(x1, picture.shape[1] - 1), min(y1, picture.shape[0] - 1)
    cv2.rectangle(picture, (x0, y0), corner, colour, max(1, round(LINE * _scale(picture))))


def _draw_label(picture: np.ndarray, box: np.ndarray, text: str, colour: Colour) -> None:
    """The label above its box, or inside it where there is no room above."""
    height, width = picture.shape[:2]
    x0, y0 = round(float(box[0])), round(float(box[1]))
    scale = _scale(picture)
    font, thickness = max(LEAST_FONT_SCALE, FONT_SCALE * scale), max(1, round(scale))
    (text_width, text_height), below = cv2.getTextSize(text, FONT, font, thickness)
    label_height = text_height + below + thickness
    left = max(0, min(x0, width - text_width))
    top = y0 - label_height if y0 >= label_height else max(0, min(y0, height - label_height))
    cv2.rectangle(picture, (left, top), (left + text_width, top + label_height), colour, cv2.FILLED)
    cv2.putText(picture, text, (left, top + text_height + thickness), FONT, font, _ink(colour), thickness, cv2.LINE_AA)


def _ink(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on a colour (luma of ITU-R BT.601)."""
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if luma > 128 else (255, 255, 255)


def _plain(name: str) -> str:
    """ASCII letters for a name: accents removed, other letters as `?`."""
    letters = unicodedata.normalize("NFKD", name)
    return "".join(x for x in letters if not unicodedata.combining(x)).encode("ascii", "replace").decode()


def score_map(detections: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) float32 in [0, 1]: 1 - prod(1 - score) over the boxes on each pixel, 0 where there is none.

    That is the probability that one of the boxes is right, if they were independent; under a single box it is its
    score. detections: (n, 6) rows [id, score, xmin, ymin, xmax, ymax] in pixels of an image of size (h, w); a box
    covers the pixels that its rounded edges enclose, one at least.
    """
    height, width = size
    doubt = -np.log1p(-np.clip(detections[:, 1].astype(np.float64), 0, HIGHEST_SCORE))  # of a product the sum
    low = np.clip(np.rint(detections[:, 2:4]).astype(int), 0, [width - 1, height - 1])
    high = np.clip(np.rint(detections[:, 4:6]).astype(int), low + 1, [width, height])
    change = np.zeros((height + 1, width + 1))  # its sums along both axes are the sums over the boxes
    for x, y, sign in ((low, low, 1), (high, low, -1), (low, high, -1), (high, high, 1)):
        np.add.at(change, (y[:, 1], x[:, 0]), sign * doubt)
    total = change.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
    return -np.expm1(-np.maximum(total, 0)).astype(np.float32)


def draw_heatmap(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """A copy of an image (h, w, 3) uint8 RGB, half of it the colours of scores (h, w): blue is 0, red is 1."""
    colours = cv2.applyColorMap(np.rint(scores * 255).astype(np.uint8), cv2.COLORMAP_JET)[:, :, ::-1]  # of BGR
    return np.rint(image * (1 - HEAT_SHARE) + colours * HEAT_SHARE).astype(np.uint8)
