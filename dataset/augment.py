"""The random choices of augmentation: SSD's canvas, crop, mirror, colours, interpolation; YOLO's mosaic, affine, HSV,
mixtures; quarter turns, flips, blur, noise, JPEG, grey.

The recipe is that of the classic ImageDetRecordIter (det_aug_default): colours, mirror, expand, crop, resize. Here
everything that moves pixels is chosen first and drawn in one go (dataset/transforms.py), and the mirror comes last,
which gives the same distribution since canvas and crop do not prefer a side. Two details differ on purpose: hue wraps
around (the classic code clips it at red), and colours shift at the lower resolution of the resize.

Mosaics are those of load_mosaic, affine maps those of random_affine (ultralytics/yolov3, utils/datasets.py). A part
that is off draws no random number, so that the others draw the same ones with and without it.
"""

from collections.abc import Sequence

import numpy as np

from boxes.geometry import area, intersection
from common.sizes import Size
from config.augment_options import BEST_JPEG, OVERLAP, RANDOM_INTERPOLATION, TrainAugment
from dataset.letterbox import Frame, Resize
from dataset.transforms import (
    WHOLE,
    ColourShift,
    as_jpeg,
    blurred,
    draw,
    flip_objects,
    flip_pixels,
    geometry,
    map_boxes,
    map_objects,
    mirror_objects,
    mirror_pixels,
    mix_pixels,
    place,
    resize,
    scale_hsv,
    shape_of,
    shift_colours,
    translation,
    turn_objects,
    turn_pixels,
    warp,
    with_noise,
    without_colours,
)

MIN_PAD_SCALE = 1.05  # det_aug_default does not pad for less
MIN_SIDE = 1e-3  # of the input; a third of a pixel at 300, nothing that could be learnt
LINEAR = 1
INTERPOLATIONS = 5
LEAST_BLUR = 0.1  # of the largest sigma
STRETCHED = Resize()

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]
TILES = 4
# Of each tile: where it lies, above (1) or below (0) the centre, and left (1) or right (0) of it.
SIDES = ((1, 1), (1, 0), (0, 1), (0, 0))

MIXED = 2  # images of a mixture
MIXUP_BETA = 32.0  # both parameters of the distribution of the shares (ultralytics/yolov3, utils/augmentations.py)

Tile = tuple[np.ndarray, np.ndarray]  # image (h, w, 3) uint8, objects (n, 6) normalised to it


def resize_only(image: np.ndarray, objects: np.ndarray, size: Size, resize: Resize = STRETCHED) -> Sample:
    """As augment(), with nothing random: the whole image resized bilinearly, with all objects."""
    shape = shape_of(image)
    frame = resize.frame(shape, size)
    placement = place(WHOLE, shape, frame.inner)
    pixels = frame.surround(draw(image, placement, frame.inner, 0, LINEAR, ColourShift()), resize.fill)
    return pixels, _framed(objects, frame), frame.move_view(geometry(placement, shape, frame.inner))


def augment(
    image: np.ndarray,
    objects: np.ndarray,
    size: Size,
    options: TrainAugment,
    rng: np.random.Generator,
    resize: Resize = STRETCHED,
) -> Sample:
    """A random view of an image for training.

    Args:
        image: (h, w, 3) uint8 BGR.
        objects: (n, 6) float32 [id, corners normalised to the image, difficult]; n = 0 is fine.
        size: (H, W) of the network input.
        options: probabilities and ranges.
        rng: source of all randomness.
        resize: how the crop, or the canvas, fills the input.

    Returns:
        The pixels (H, W, 3) uint8 BGR; the objects (k, 6), k <= n, normalised to and clipped at the input: those that
        the crop keeps and whose sides are at least MIN_SIDE, and that map_objects of dataset.transforms keeps; the
        geometry (6,) of dataset.transforms.geometry, NaN for scale and offset after an affine map.
    """
    pixels, found, view = _classic_view(image, objects, size, options, rng, resize)
    if options.affine:
        matrix = choose_matrix(size, size, options, rng)
        pixels, found = warp(pixels, matrix, size, options.fill_value), map_objects(found, size, matrix, size)
        view = unknown_view(image)
    return _scale_hsv(pixels, options, rng), found, view


def augment_mosaic(
    tiles: Sequence[Tile], size: Size, options: TrainAugment, rng: np.random.Generator, resize: Resize = STRETCHED
) -> Sample:
    """A random mosaic of four images; as augment(), with (image, objects) of each tile, the sample's own one first.

    The canvas of compose() is twice as large as the input, which shows its middle, moved by the affine
    map. Mirror and colours are those of the classic part.
    """
    canvas, objects = compose(tiles, size, options.fill_value, _interpolation(options, rng), rng, resize)
    shape = shape_of(canvas)
    matrix = choose_matrix(shape, size, options, rng)
    pixels, found = warp(canvas, matrix, size, options.fill_value), map_objects(objects, shape, matrix, size)
    if rng.random() < options.rand_mirror_prob:
        pixels, found = mirror_pixels(pixels), mirror_objects(found)
    pixels = shift_colours(pixels, choose_colours(options, rng))
    return _scale_hsv(pixels, options, rng), found, unknown_view(tiles[0][0])


def orient(image: np.ndarray, objects: np.ndarray, options: TrainAugment, rng: np.random.Generator) -> Tile:
    """An image, turned and flipped at random before anything else is chosen; the same object where it is neither."""
    if options.quarter_turn_prob and rng.random() < options.quarter_turn_prob:
        quarters = int(rng.integers(1, 4))
        image, objects = turn_pixels(image, quarters), turn_objects(objects, quarters)
    if options.flip_ud_prob and rng.random() < options.flip_ud_prob:
        image, objects = flip_pixels(image), flip_objects(objects)
    return image, objects


def mix_up(first: Tile, second: Tile, rng: np.random.Generator) -> Tile:
    """The weighted mean of the pixels of two views of one size, with the objects of both (Zhang et al. 2018, mixup).

    The losses of the objects have no weights, as in ultralytics/yolov3.
    """
    share = rng.beta(MIXUP_BETA, MIXUP_BETA)
    return mix_pixels(first[0], second[0], share), np.concatenate([first[1], second[1]])


def degrade(pixels: np.ndarray, options: TrainAugment, rng: np.random.Generator) -> np.ndarray:
    """The finished view (H, W, 3) in grey, blurred, with noise, as a JPEG: each with its own probability."""
    if options.grey_prob and rng.random() < options.grey_prob:
        pixels = without_colours(pixels)
    if options.blur_prob and rng.random() < options.blur_prob:
        pixels = blurred(pixels, rng.uniform(LEAST_BLUR * options.max_blur, options.max_blur))
    if options.noise_prob and rng.random() < options.noise_prob:
        deviation = np.float32(rng.uniform(0, options.max_noise))
        pixels = with_noise(pixels, deviation * rng.standard_normal(pixels.shape, np.float32))
    if options.jpeg_prob and rng.random() < options.jpeg_prob:
        pixels = as_jpeg(pixels, int(rng.integers(options.min_jpeg_quality, BEST_JPEG + 1)))
    return pixels


def unknown_view(image: np.ndarray) -> np.ndarray:
    """The geometry (6,) of an image whose place in the input is not one scale and offset: NaN."""
    return np.array([*shape_of(image), *[np.nan] * 4])


def _scale_hsv(pixels: np.ndarray, options: TrainAugment, rng: np.random.Generator) -> np.ndarray:
    """Pixels with random gains of hue, saturation and value."""
    if not options.hsv:
        return pixels
    return scale_hsv(pixels, 1 + rng.uniform(-1, 1, 3) * (options.hsv_h, options.hsv_s, options.hsv_v))


def _classic_view(
    image: np.ndarray,
    objects: np.ndarray,
    size: Size,
    options: TrainAugment,
    rng: np.random.Generator,
    resize: Resize,
) -> Sample:
    """The view by canvas, crop, mirror and colours; arguments and result as those of augment()."""
    shape = shape_of(image)
    rectangle, kept = choose_rectangle(objects[:, 1:5], shape[1] / shape[0], options, rng)
    frame = resize.frame(tuple((rectangle[2:] - rectangle[:2])[::-1] * shape), size)
    placement = place(rectangle, shape, frame.inner, mirror=bool(rng.random() < options.rand_mirror_prob))
    interpolation = _interpolation(options, rng)
    pixels = draw(image, placement, frame.inner, options.fill_value, interpolation, choose_colours(options, rng))
    view = geometry(placement, shape, frame.inner)
    found = _framed(_map_objects(objects[kept], view, frame.inner), frame)
    return frame.surround(pixels, resize.fill), found[_large(found)], frame.move_view(view)


def _interpolation(options: TrainAugment, rng: np.random.Generator) -> int:
    """Number of the interpolation as dataset.transforms.resize takes it."""
    random = options.inter_method == RANDOM_INTERPOLATION
    return int(rng.integers(INTERPOLATIONS)) if random else options.inter_method


def _map_objects(objects: np.ndarray, view: np.ndarray, size: Size) -> np.ndarray:
    """Objects in a view (H, W), clipped to it."""
    return np.concatenate([objects[:, :1], map_boxes(objects[:, 1:5], view, size), objects[:, 5:]], axis=1)


def _framed(objects: np.ndarray, frame: Frame) -> np.ndarray:
    """Objects normalised to the frame -> normalised to the input."""
    return np.concatenate([objects[:, :1], frame.move_boxes(objects[:, 1:5]), objects[:, 5:]], axis=1)


def _large(objects: np.ndarray) -> np.ndarray:
    """(n,): is it large enough to be seen?"""
    return (objects[:, 3:5] - objects[:, 1:3] >= MIN_SIDE).all(axis=1)


def choose_matrix(source: Size, size: Size, options: TrainAugment, rng: np.random.Generator) -> np.ndarray:
    """The matrix (3, 3) from an image (h, w) to an input (H, W): the centre goes to the centre, then it is shifted.

    Without a random part it moves by whole pixels.
    """
    to_centre = translation(*(-(side // 2) for side in source[::-1]))
    from_centre = translation(*(side // 2 for side in size[::-1]))
    if not options.affine:
        return from_centre @ to_centre
    angle, scale, *skew = rng.uniform(-1, 1, 4) * (options.degrees, options.scale, options.shear, options.shear)
    shift = rng.uniform(-1, 1, 2) * options.translate * size[::-1]
    cosine, sine = (1 + scale) * np.cos(np.radians(angle)), (1 + scale) * np.sin(np.radians(angle))
    rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    slope_x, slope_y = np.tan(np.radians(skew))
    shear = np.array([[1, slope_x, 0], [slope_y, 1, 0], [0, 0, 1]])
    return from_centre @ translation(*shift) @ shear @ rotation @ to_centre


def choose_colours(options: TrainAugment, rng: np.random.Generator) -> ColourShift:
    """Each change has its own probability and is uniform in +- its maximum; hue, lightness, saturation are whole."""
    chance, value = rng.random((2, 4))
    o = options
    probabilities = (o.random_hue_prob, o.random_illumination_prob, o.random_saturation_prob, o.random_contrast_prob)
    limits = (o.max_random_hue, o.max_random_illumination, o.max_random_saturation, o.max_random_contrast)
    hue, lightness, saturation, contrast = np.where(chance < probabilities, (2 * value - 1) * limits, 0)
    return ColourShift(round(hue), round(lightness), round(saturation), float(contrast))


def choose_rectangle(
    boxes: np.ndarray, aspect: float, options: TrainAugment, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The part of the expanded image to show, (4,) in units of the image, and which of the boxes (n, 4) it keeps, (n,).

    aspect is width / height of the image. Without a canvas and a crop, or if no trial succeeds, all boxes are kept.
    """
    canvas = choose_canvas(options, rng)
    if rng.random() >= options.rand_crop_prob or options.num_crop_sampler == 0:
        return canvas, np.ones(len(boxes), bool)
    origin, side = canvas[:2], canvas[2] - canvas[0]
    on_canvas = (boxes.reshape(-1, 2, 2) - origin).reshape(-1, 4) / side
    crop, kept = choose_crop(on_canvas, aspect, options, rng)
    return (crop.reshape(2, 2) * side + origin).ravel(), kept


def choose_canvas(options: TrainAugment, rng: np.random.Generator) -> np.ndarray:
    """The canvas that the image lies on, (4,) in units of the image: WHOLE or larger, of the image's aspect ratio."""
    chance, grown, x, y = rng.random(4)
    scale = 1 + grown * (options.max_pad_scale - 1)
    if chance >= options.rand_pad_prob or scale < MIN_PAD_SCALE:
        return WHOLE
    x0, y0 = -x * (scale - 1), -y * (scale - 1)
    return np.array([x0, y0, x0 + scale, y0 + scale])


def choose_crop(
    boxes: np.ndarray, aspect: float, options: TrainAugment, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The first crop (4,) that satisfies its sampler and keeps a box, with samplers in random order, and the kept (n,).

    Boxes (n, 4) and crop are in units of the canvas, aspect is its width / height. Without boxes the first proposal
    is taken; if none fits, WHOLE and all boxes.
    """
    sampler = _turns(options, rng)
    crops = propose_crops(sampler, aspect, options, rng)
    if len(crops) == 0 or len(boxes) == 0:
        return (crops[0] if len(crops) else WHOLE), np.ones(len(boxes), bool)
    boxes = boxes.astype(np.float64)
    common = intersection(crops, boxes)  # (trials, n)
    kept = _emitted(crops, boxes, common, options)
    valid = _fits(sampler, crops, boxes, common, options).any(axis=1) & kept.any(axis=1)
    first = int(valid.argmax())
    return (crops[first], kept[first]) if valid[first] else (WHOLE, np.ones(len(boxes), bool))


def _turns(options: TrainAugment, rng: np.random.Generator) -> np.ndarray:
    """The sampler of each trial, (sum of max_crop_trials,): samplers in random order, each with all its trials."""
    order = rng.permutation(options.num_crop_sampler)
    return np.repeat(order, np.array(options.max_crop_trials)[order])


def propose_crops(sampler: np.ndarray, aspect: float, options: TrainAugment, rng: np.random.Generator) -> np.ndarray:
    """One random crop (t, 4) inside [0, 1] for each entry of sampler (t,), as det_aug_default's GenerateCropBox.

    scale is uniform, and so is width / height within the sampler's limits and those of the canvas of that `aspect`.
    """

    def limit(values: tuple[float, ...]) -> np.ndarray:
        return np.array(values)[sampler]

    u = rng.random((4, len(sampler)))
    low, high = limit(options.min_crop_scales), limit(options.max_crop_scales)
    scale = low + u[0] * (high - low)
    low = np.maximum(limit(options.min_crop_aspect_ratios) / aspect, scale**2)
    high = np.minimum(limit(options.max_crop_aspect_ratios) / aspect, 1 / scale**2)
    ratio = np.sqrt(low + u[1] * (high - low))
    width, height = np.minimum(scale * ratio, 1), np.minimum(scale / ratio, 1)
    x0, y0 = u[2] * (1 - width), u[3] * (1 - height)
    return np.stack([x0, y0, x0 + width, y0 + height], axis=1)


def _fits(
    sampler: np.ndarray, crops: np.ndarray, boxes: np.ndarray, common: np.ndarray, options: TrainAugment
) -> np.ndarray:
    """(t, n): is box n within the limits of crop t's sampler? `common` (t, n) are the intersections."""
    crop_area, box_area = area(crops)[:, None], area(boxes)
    measures = {
        "overlaps": common / (crop_area + box_area - common),
        "sample_coverages": common / crop_area,
        "object_coverages": common / np.maximum(box_area, np.finfo(float).tiny),
    }
    fits = np.ones(common.shape, bool)
    for name, measure in measures.items():
        low = np.array(getattr(options, f"min_crop_{name}"))[sampler, None]
        high = np.array(getattr(options, f"max_crop_{name}"))[sampler, None]
        if low.any() or (high < 1).any():
            fits &= (measure >= low) & (measure <= high)
    return fits


def _emitted(crops: np.ndarray, boxes: np.ndarray, common: np.ndarray, options: TrainAugment) -> np.ndarray:
    """(t, n): does crop t keep box n?"""
    if options.crop_emit_mode == OVERLAP:
        return common > options.emit_overlap_thresh * area(boxes)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres >= crops[:, None, :2]) & (centres < crops[:, None, 2:])).all(axis=2)


def compose(
    tiles: Sequence[Tile], size: Size, fill: int, interpolation: int, rng: np.random.Generator, mode: Resize
) -> Tile:
    """The canvas (2 H, 2 W, 3) of an input (H, W) with four images around a point in its middle, and all objects.

    Each image is resized as the input's mode has it, without borders, and touches the point with a corner; what does
    not fit on the canvas is cut off, and what no image covers has the colour `fill`. The boxes are normalised to the
    canvas and may reach beyond it.
    """
    shape = (2 * size[0], 2 * size[1])
    canvas = np.full((*shape, 3), fill, np.uint8)
    centre = (np.array(size) * rng.uniform(0.5, 1.5, 2)).astype(np.int64)  # y, x
    placed = []
    for (image, objects), side in zip(tiles, SIDES, strict=True):
        inner = mode.frame(shape_of(image), size).inner
        corner = centre - np.array(side) * inner
        _paste(canvas, resize(image, inner, interpolation), *corner.tolist())
        placed.append(_place_objects(objects, inner, corner, shape))
    return canvas, np.concatenate(placed)


def _paste(canvas: np.ndarray, image: np.ndarray, y: int, x: int) -> None:
    """Copies the part of an image that lies on the canvas if its upper left corner is at (y, x)."""
    top, left = max(y, 0), max(x, 0)
    visible = image[top - y : canvas.shape[0] - y, left - x : canvas.shape[1] - x]
    canvas[top : top + visible.shape[0], left : left + visible.shape[1]] = visible


def _place_objects(objects: np.ndarray, inner: Size, corner: np.ndarray, canvas: Size) -> np.ndarray:
    """Objects (n, 6) of an image of size `inner` at `corner` (y, x), float64 normalised to the canvas (h, w)."""
    scale, offset, unit = (np.tile(pair[::-1], 2) for pair in (inner, corner, canvas))
    return np.concatenate([objects[:, :1], (objects[:, 1:5] * scale + offset) / unit, objects[:, 5:]], axis=1)
