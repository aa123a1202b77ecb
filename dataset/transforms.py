"""What is done to pixels and boxes, once it is decided: decode, bring to 8 bits; and augmentation's place, resize, map,
shift colours, mirror, normalise.

A random expand (Liu et al. 2016, section 3.6) followed by a crop is one rectangle of the source image, which may reach
beyond it. It is drawn by one resize of the part that shows the image; the expanded canvas itself never exists.

Matrices (3, 3) of affine maps map edges, in pixels, x first: pixel k reaches from k to k + 1, as boxes have it. Three
details differ from the reference (random_affine of ultralytics/yolov3) on purpose: shear leaves the centre where it is;
shifts are parts of the input's own sides; and how much of an object is left is judged by its whole area as it is mapped
(there by what a mosaic's canvas shows of it, times the scale once).
"""

import math
from dataclasses import dataclass

import numpy as np

from boxes.geometry import area, clip_to_unit
from common.errors import DataError, OptionError
from common.sizes import Size
from config.augment_options import AUTO_INTERPOLATION
from dataset.image_cost import check_cost
from machine.opencv import MAX_PIXELS, cv2

Span = tuple[int, int]
MORE_BITS = (
    "has more than 8 bits, and records hold 8; pack the images again with --bit-depth, which says how they become 8"
)
DECODE_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
DECODE_FLAGS_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_ALL_BITS = cv2.IMREAD_ANYDEPTH  # so that more than 8 are seen; without it the upper 8 would be taken
HUE_RANGE = 180  # of OpenCV's 8-bit HLS
WHOLE = np.array([0.0, 0.0, 1.0, 1.0])
MIN_PIXELS = 4  # an object keeps more than this of each side,
MIN_AREA = 0.2  # more than this part of its area,
MAX_ASPECT = 10  # and less than this ratio of its sides (ultralytics/yolov3, random_affine)
WINDOW, PERCENTILE = "window", "percentile"
BIT_DEPTH_FORM = f"{WINDOW}:LOW,HIGH with LOW < HIGH, or {PERCENTILE}:P,Q with 0 <= P < Q <= 100"
_LARGEST = 1e12  # of a window's ends
_NARROWEST = 1e-30  # window that is divided by: below it, values are either below or above
_STRIP = 1 << 20  # values that are mapped at a time, as they take 8 bytes each meanwhile
HALF_PIXEL = 0.5  # OpenCV's coordinates are those of the pixels' centres


@dataclass(frozen=True)
class Placement:
    """Where pixels of the image appear in the network input: source -> target (columns, rows), then mirrored.

    Spans are whole pixels [begin, end), so that boxes can follow the pixels exactly; the rest of the input is canvas.
    """

    source: tuple[Span, Span]
    target: tuple[Span, Span]
    mirror: bool = False


@dataclass(frozen=True)
class ColourShift:
    """Change of hue (of 180, it wraps), lightness and saturation (of 255), then all values times 1 + contrast."""

    hue: int = 0
    lightness: int = 0
    saturation: int = 0
    contrast: float = 0.0


def decode(image: bytes, where: str) -> np.ndarray:
    """Encoded image -> (h, w, 3) uint8 BGR; EXIF orientation is ignored: boxes refer to the stored pixels.

    DataError naming `where` if it is no image that OpenCV can decode, costs more than its pixels (check_cost), has more
    than MAX_PIXELS or more than 8 bits.
    """
    try:
        check_cost(image, inflate=False)
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), DECODE_FLAGS | _ALL_BITS)
    except DataError as error:
        raise DataError(f"{where}: the image cannot be decoded ({error}); replace it and pack again") from error
    except cv2.error as error:
        reason = f"more than {MAX_PIXELS} pixels" if "CV_IO_MAX" in error.err else error.err
        raise DataError(f"{where}: the image cannot be decoded ({reason}); replace it and pack again") from error
    if pixels is None:
        raise DataError(f"{where}: its {len(image)} bytes of image cannot be decoded; replace it and pack again")
    if pixels.dtype != np.uint8:
        raise DataError(f"{where}: the image {MORE_BITS}")
    return pixels


def parse_bit_depth(rule: str) -> tuple[str, float, float]:
    """(kind, low, high) of a rule of --bit-depth; ValueError for what is none."""
    kind, _, numbers = rule.partition(":")
    words = numbers.split(",")
    try:
        low, high = map(float, words) if len(words) == 2 else (math.nan, math.nan)
    except ValueError:
        low = high = math.nan
    least, most = (0, 100) if kind == PERCENTILE else (-_LARGEST, _LARGEST)
    if kind not in (WINDOW, PERCENTILE) or not least <= low < high <= most:
        raise ValueError(f"bit depth {rule!r:.80}: expected {BIT_DEPTH_FORM}")
    return kind, low, high


def checked_bit_depth(rule: str) -> str:
    """The rule of --bit-depth in its one spelling, "" as it is; OptionError for what is none."""
    if not rule:
        return ""
    try:
        kind, *ends = parse_bit_depth(rule)
    except ValueError as error:
        raise OptionError(f"--bit-depth {rule:.80}: expected {BIT_DEPTH_FORM}") from error
    return f"{kind}:{','.join(str(int(end)) if end.is_integer() else repr(end) for end in ends)}"


def shown_bit_depth(rule: str) -> str:
    """The rule of --bit-depth, in a sentence."""
    return rule or "none, 8 bits"


def eight_bits(pixels: np.ndarray, rule: str) -> np.ndarray:
    """Pixels of any shape and type of numbers as uint8, by a rule of --bit-depth; "" leaves uint8 as it is.

    LOW becomes 0, HIGH 255, and what lies between them the nearest whole number in proportion, halves the even one;
    the rest is clipped. LOW and HIGH of a percentile are the smallest values of these pixels, all channels together,
    that P and Q percent of them do not exceed. So pixels that a percentile has mapped stay as they are when it is
    applied once more. DataError with the reason alone for more than 8 bits without a rule, 8 bits with a window, and
    numbers that are not finite.
    """
    if not rule and pixels.dtype != np.uint8:
        raise DataError(too_deep(pixels))
    if not rule:
        return pixels
    kind, low, high = parse_bit_depth(rule)
    if kind == WINDOW and pixels.dtype == np.uint8:
        raise DataError(
            f"has 8 bits, and the bit depth {rule} is of images with more: 0 to 255 would be dark or clipped; give the "
            "image with all its bits"
        )
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise DataError("has values that are not finite; replace them")
    if kind == PERCENTILE:
        low, high = map(float, np.percentile(pixels, (low, high), method="inverted_cdf"))
    return _mapped(pixels, low, high)


def share_outside(pixels: np.ndarray, rule: str) -> float:
    """The share of pixels that a window clips, 0 to 1; 0 for a percentile, which means to, and without a rule."""
    kind, low, high = parse_bit_depth(rule) if rule else ("", 0.0, 0.0)
    return float(((pixels < low) | (pixels > high)).mean()) if kind == WINDOW else 0.0


def _mapped(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """The linear map of eight_bits, some rows at a time; by a table of all values where a value has 16 bits at most."""
    scale = 255 / max(high - low, _NARROWEST)

    def convert(values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.clip(np.rint((values.astype(np.float64) - low) * scale), 0, 255).astype(np.uint8)

    table, kind = None, pixels.dtype
    if kind.kind in "ui" and kind.itemsize <= 2:
        table = convert(np.arange(1 << 8 * kind.itemsize, dtype=f"u{kind.itemsize}").view(kind))
    mapped, rows = np.empty(pixels.shape, np.uint8), max(1, _STRIP // max(1, pixels[:1].size))
    for begin in range(0, len(pixels), rows):
        strip = np.ascontiguousarray(pixels[begin : begin + rows])
        found = convert(strip) if table is None else table[strip.view(f"u{kind.itemsize}")]
        mapped[begin : begin + rows] = found
    return mapped


def too_deep(pixels: np.ndarray) -> str:
    """The sentence on pixels of more than 8 bits, with the window that would hold them."""
    low, high = pixels.min(), pixels.max()
    whole = pixels.dtype.kind in "ui" and low >= 0
    window = f"0,{max(255, (1 << int(high).bit_length()) - 1)}" if whole else f"{low:g},{high:g}"
    return (
        f"has values of {pixels.dtype} from {low:g} to {high:g}, more than 8 bits hold; pack with --bit-depth, for "
        f"instance {WINDOW}:{window}, which says how they become 8, and a model trained on that does the same"
    )


def shape_of(image: np.ndarray) -> Size:
    """(h, w) of an image (h, w, ...)."""
    return image.shape[0], image.shape[1]


def place(rectangle: np.ndarray, image: Size, size: Size, mirror: bool = False) -> Placement:
    """Shows `rectangle` of an image (h, w) in an input (H, W).

    The rectangle (4,) is in units of the image: WHOLE is the image. Its edges inside the image move to the next whole
    pixel of the image, the image's own edges to a whole pixel of the input; at least one pixel of the image is shown.
    """
    columns = _place_axis(rectangle[0], rectangle[2], image[1], size[1])
    rows = _place_axis(rectangle[1], rectangle[3], image[0], size[0])
    return Placement((columns[0], rows[0]), (columns[1], rows[1]), mirror)


def _place_axis(low: float, high: float, length: int, out: int) -> tuple[Span, Span]:
    """Source and target span of the range [low, high) of an axis with `length` pixels in an input of `out` pixels."""
    begin = min(max(round(low * length), 0), length - 1)
    end = min(max(round(high * length), begin + 1), length)
    scale = out / ((high - low) * length)
    to = 0 if low >= 0 else min(max(round(-low * length * scale), 0), out - 1)
    until = out if high <= 1 else min(max(round((1 - low) * length * scale), to + 1), out)
    return (begin, end), (to, until)


def geometry(placement: Placement, image: Size, size: Size) -> np.ndarray:
    """(6,) float64: h, w of the image, scale y, x, offset y, x; input pixel = image pixel * scale + offset.

    Scale x is negative if mirrored.
    """
    (scale_x, offset_x), (scale_y, offset_y) = map(_linear, placement.source, placement.target)
    if placement.mirror:
        scale_x, offset_x = -scale_x, size[1] - offset_x
    return np.array([*image, scale_y, scale_x, offset_y, offset_x], np.float64)


def _linear(source: Span, target: Span) -> tuple[float, float]:
    scale = (target[1] - target[0]) / (source[1] - source[0])
    return scale, target[0] - source[0] * scale


def map_boxes(boxes: np.ndarray, geometry: np.ndarray, size: Size) -> np.ndarray:
    """Boxes (n, 4) normalised to the image -> (n, 4) float32 normalised to the input (H, W), clipped to [0, 1]."""
    h, w, scale_y, scale_x, offset_y, offset_x = geometry.astype(np.float64)
    scale = np.array([w * scale_x, h * scale_y]) / size[::-1]
    offset = np.array([offset_x, offset_y]) / size[::-1]
    corners = boxes.astype(np.float64).reshape(-1, 2, 2) * scale + offset  # (n, 2 corners, xy)
    ordered = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)  # (n, 4), also if mirrored
    return clip_to_unit(ordered).astype(np.float32)


def to_image(boxes: np.ndarray, geometry: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) in pixels of the input -> (n, 4) float64 in pixels of the image, clipped to it.

    geometry (6,) is that of a view without mirror; edges reach from 0 to the width and height of the image.
    """
    h, w, scale_y, scale_x, offset_y, offset_x = geometry.astype(np.float64)
    offset, scale = np.array([offset_x, offset_y] * 2), np.array([scale_x, scale_y] * 2)
    return np.clip((boxes - offset) / scale, 0, [w, h, w, h])


def draw(
    image: np.ndarray, placement: Placement, size: Size, fill: int, interpolation: int, shift: ColourShift
) -> np.ndarray:
    """The input (H, W, 3) uint8 that shows an image (h, w, 3) uint8; the canvas has the colour `fill` in all channels.

    Colours are shifted where there are fewer pixels, before or after the resize: the shift works on single pixels, so
    the order matters only where interpolation mixes values that the shift clips.
    """
    (x0, x1), (y0, y1) = placement.source
    visible = image[y0:y1, x0:x1]
    (x0, x1), (y0, y1) = placement.target
    enlarged = visible.shape[0] * visible.shape[1] < (x1 - x0) * (y1 - y0)
    if enlarged:
        visible = shift_colours(visible, shift)
    visible = resize(visible, (y1 - y0, x1 - x0), interpolation)
    if not enlarged:
        visible = shift_colours(visible, shift)
    if visible.shape[:2] != size:
        canvas = np.full((*size, 3), fill, np.uint8)
        canvas[y0:y1, x0:x1] = visible
        visible = canvas
    return mirror_pixels(visible) if placement.mirror else visible


def mirror_pixels(image: np.ndarray) -> np.ndarray:
    """An image (h, w, 3) with left and right exchanged."""
    return cv2.flip(image, 1)


def mirror_objects(objects: np.ndarray) -> np.ndarray:
    """Objects (n, 6) of a normalised image with left and right exchanged."""
    mirrored = objects.copy()
    mirrored[:, [1, 3]] = 1 - objects[:, [3, 1]]
    return mirrored


def flip_pixels(image: np.ndarray) -> np.ndarray:
    """An image (h, w, 3) with top and bottom exchanged."""
    return cv2.flip(image, 0)


def flip_objects(objects: np.ndarray) -> np.ndarray:
    """Objects (n, 6) of a normalised image with top and bottom exchanged."""
    flipped = objects.copy()
    flipped[:, [2, 4]] = 1 - objects[:, [4, 2]]
    return flipped


def turn_pixels(image: np.ndarray, quarters: int) -> np.ndarray:
    """An image (h, w, 3) turned clockwise by 1, 2 or 3 quarters: (w, h, 3) unless it is 2."""
    return cv2.rotate(image, (cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE)[quarters - 1])


def turn_objects(objects: np.ndarray, quarters: int) -> np.ndarray:
    """Objects (n, 6) of a normalised image that is turned clockwise: each quarter takes (x, y) to (1 - y, x)."""
    turned = objects.copy()
    for _ in range(quarters):
        xmin, ymin, xmax, ymax = turned[:, 1:5].T
        turned[:, 1:5] = np.stack([1 - ymax, xmin, 1 - ymin, xmax], axis=1)
    return turned


def mix_pixels(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """The mean of two images (h, w, 3) uint8 with the weights share and 1 - share."""
    return cv2.addWeighted(first, share, second, 1 - share, 0)


def without_colours(image: np.ndarray) -> np.ndarray:
    """An image (h, w, 3) uint8 BGR in grey."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """An image (h, w, 3) uint8 under a Gaussian blur; sigma in pixels, above 0."""
    return cv2.GaussianBlur(image, (0, 0), sigma)


def with_noise(image: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """An image (h, w, 3) uint8 plus noise of its shape, rounded and clipped."""
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """An image (h, w, 3) uint8 BGR as a JPEG of a quality of 1 to 100 shows it."""
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], DECODE_FLAGS)


def resize(image: np.ndarray, size: Size, interpolation: int) -> np.ndarray:
    """An image (h, w, 3) resized to (H, W); interpolation 0 to 4 as in OpenCV, 9 = area if it shrinks, else cubic."""
    if interpolation == AUTO_INTERPOLATION:
        shrinks = image.shape[0] > size[0] or image.shape[1] > size[1]
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, size[::-1], interpolation=interpolation)


def shift_colours(image: np.ndarray, shift: ColourShift) -> np.ndarray:
    """An image (h, w, 3) uint8 BGR with shifted colours; the image itself is left alone (it may be returned).

    Lightness, saturation and values are clipped to 0..255.
    """
    if shift.hue or shift.lightness or shift.saturation:
        hls = cv2.cvtColor(image, cv2.COLOR_BGR2HLS)
        image = cv2.cvtColor(cv2.LUT(hls, _hls_table(shift)), cv2.COLOR_HLS2BGR)
    if shift.contrast:
        image = cv2.convertScaleAbs(image, alpha=1 + shift.contrast)
    return image


def _hls_table(shift: ColourShift) -> np.ndarray:
    """(256, 1, 3) uint8: the shifted value of each value of H, L and S."""
    values = np.arange(256)
    lightness, saturation = (np.clip(values + change, 0, 255) for change in (shift.lightness, shift.saturation))
    return np.stack([(values + shift.hue) % HUE_RANGE, lightness, saturation], axis=1).astype(np.uint8)[:, None]


def scale_hsv(image: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """An image (h, w, 3) uint8 BGR whose hue, saturation and value (OpenCV's 8-bit HSV) are multiplied by gains (3,).

    Hue wraps around, the others are clipped to 255. As augment_hsv of ultralytics/yolov3 (utils/datasets.py).
    """
    scaled = (np.arange(256)[:, None] * gains).astype(np.int64)  # (256, 3)
    scaled[:, 0] %= HUE_RANGE
    table = np.minimum(scaled, 255).astype(np.uint8)[:, None]  # (256, 1, 3)
    return cv2.cvtColor(cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table), cv2.COLOR_HSV2BGR)


def normalise(image: np.ndarray, mean: np.ndarray, std: np.ndarray, out: np.ndarray) -> None:
    """Writes (image - mean) / std of an image (H, W, 3) uint8 BGR to out (3, H, W) float32 RGB; mean, std (3,) RGB."""
    for channel, plane in zip((2, 1, 0), cv2.split(image), strict=True):
        target = out[channel]
        target[...] = plane
        target -= mean[channel]
        if std[channel] != 1:
            target /= std[channel]


def translation(x: float, y: float) -> np.ndarray:
    """The matrix (3, 3) of a shift by x and y pixels."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def warp(image: np.ndarray, matrix: np.ndarray, size: Size, fill: int) -> np.ndarray:
    """The input (H, W, 3) uint8 that shows an image (h, w, 3) mapped by the matrix, bilinearly; `fill` is around it."""
    x, y = (-matrix[:2, 2]).astype(np.int64)
    inside = min(x, y) >= 0 and y + size[0] <= image.shape[0] and x + size[1] <= image.shape[1]
    if inside and (matrix == translation(-x, -y)).all():
        return image[y : y + size[0], x : x + size[1]]
    centres = translation(-HALF_PIXEL, -HALF_PIXEL) @ matrix @ translation(HALF_PIXEL, HALF_PIXEL)
    return cv2.warpAffine(image, centres[:2], size[::-1], flags=cv2.INTER_LINEAR, borderValue=(fill,) * 3)


def map_objects(objects: np.ndarray, source: Size, matrix: np.ndarray, size: Size) -> np.ndarray:
    """Objects of an image mapped to an input, each with the box around its mapped corners, clipped at the input.

    Args:
        objects: (n, 6), boxes normalised to the image; they may reach beyond it, where there is nothing to see.
        source: (h, w) of the image.
        matrix: (3, 3) from the image's pixels to the input's.
        size: (H, W) of the input.

    Returns:
        (k, 6) float32 normalised to the input: those of which enough is left (MIN_PIXELS, MIN_AREA, MAX_ASPECT).
    """
    boxes = objects[:, 1:5].astype(np.float64)
    whole = area(boxes * np.tile(source[::-1], 2)) * abs(np.linalg.det(matrix))  # (n,)
    corners = np.clip(boxes, 0, 1)[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] * source[::-1]  # (n, 4 corners, xy)
    mapped = corners @ matrix[:2, :2].T + matrix[:2, 2]
    limits = np.tile(size[::-1], 2)
    found = np.clip(np.concatenate([mapped.min(axis=1), mapped.max(axis=1)], axis=1), 0, limits)  # (n, 4)
    sides = found[:, 2:] - found[:, :2]
    kept = (sides > MIN_PIXELS).all(axis=1) & (area(found) > MIN_AREA * whole)
    kept &= sides.max(axis=1, initial=0) < MAX_ASPECT * sides.min(axis=1, initial=np.inf)
    return np.concatenate([objects[:, :1], found / limits, objects[:, 5:]], axis=1)[kept].astype(np.float32)
