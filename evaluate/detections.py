"""What was found and what is there in each image of a set, in pixels: what all metrics, tables and reports are made of.

Coordinates are edges: 0 is the left or top edge of the image, its width or height the right or bottom one. They are
clipped to the image, as Detector clips them, and multiples of GRID, so that the same detections give the same numbers
whether they come from a network, through float32, or from a file: sums and differences of such numbers are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from common.sizes import Size
from evaluate.coco_metric import COCOResult, coco_eval
from evaluate.voc_eval import DETECTION_COLUMNS, TRUTH_COLUMNS, VOCResult, VOCRule, voc_eval

GRID = 1 / 1024  # of a pixel; float32 normalised to 4,000 pixels is as fine
FRAME_COLUMNS = 6  # of frames_of
WHOLE = 1e-6  # relative; float32 has 24 bits
COCO, VOC07 = "coco", "voc07"  # of config.groups.METRICS


def frames_of(geometry: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames (n, 6) float64 from a batch's geometry (n, 6) [h, w, scale y, x, offset y, x] in an input (H, W).

    Rows [height, width, scale x, scale y, offset x, offset y]: a coordinate in pixels of the image is the one
    normalised to the input times the scale plus the offset. The scale of a whole image is its size, to the last digit.
    """
    geometry = geometry.astype(np.float64)
    scale, offset = geometry[:, [3, 2]], geometry[:, [5, 4]]
    factor, sides = np.array(size[::-1]) / scale, geometry[:, [1, 0]]
    factor = np.where(np.isclose(factor, sides, rtol=WHOLE, atol=0) & (offset == 0), sides, factor)
    return np.concatenate([geometry[:, :2], factor, -offset / scale], axis=1)


def to_image_pixels(boxes: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Corners (n, 4) normalised to the input -> corners in pixels of the images, clipped to them, on the GRID."""
    scale, offset = np.tile(frames[:, 2:4], 2), np.tile(frames[:, 4:6], 2)
    return on_grid(np.clip(boxes * scale + offset, 0, np.tile(frames[:, [1, 0]], 2)))


def on_grid(pixels: np.ndarray) -> np.ndarray:
    """Coordinates in pixels as the nearest multiples of GRID; NaN and infinity stay."""
    return np.round(pixels / GRID) * GRID


@dataclass(frozen=True)
class ImageResult:
    """One image.

    Attributes:
        name: its path in the list beside the record, or in the folder; its id where nothing tells that.
        size: (height, width).
        truth: (n, 6) float64 rows [id, xmin, ymin, xmax, ymax, difficult] in pixels.
        found: (m, 6) float64 rows [id, score, xmin, ymin, xmax, ymax] in pixels, in the order of the network or file.
        id: what COCO files call it: the id of its record, or that of the annotation file.
    """

    name: str
    size: Size
    truth: np.ndarray
    found: np.ndarray
    id: int = 0


@dataclass(frozen=True)
class Results:
    """All images of a set, in its order, and the names of the classes by id."""

    class_names: tuple[str, ...]
    images: tuple[ImageResult, ...]

    @cached_property
    def detections(self) -> np.ndarray:
        """(n, 7) rows [image, id, score, xmin, ymin, xmax, ymax]; images are counted from 0."""
        return _numbered([image.found for image in self.images], DETECTION_COLUMNS)

    @cached_property
    def truths(self) -> np.ndarray:
        """(g, 7) rows [image, id, xmin, ymin, xmax, ymax, difficult]; images are counted from 0."""
        return _numbered([image.truth for image in self.images], TRUTH_COLUMNS)

    @property
    def sizes(self) -> np.ndarray:
        """(images, 2) their heights and widths."""
        return np.array([image.size for image in self.images], np.int64).reshape(-1, 2)

    def subset(self, rows: Sequence[int] | np.ndarray) -> "Results":
        """The images with these numbers, in that order; a number may be there more than once."""
        return Results(self.class_names, tuple(self.images[k] for k in rows))


def _numbered(parts: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """The rows of all images with the number of the image in front."""
    numbers = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    rows = np.concatenate([np.empty((0, columns - 1)), *parts])
    return np.column_stack([numbers, rows])


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one pass over a set.

    Attributes:
        results: by kind of metric, in the order asked for.
        overlap: IoU above which VOC's rule counts a detection as right.
        images: how many were evaluated.
        seconds: duration of the pass; 0 for detections from a file.
        found: detections and objects of each image, if they were to be kept.
    """

    results: dict[str, VOCResult | COCOResult]
    overlap: float
    images: int
    seconds: float
    found: Results | None = None

    @property
    def result(self) -> VOCResult:
        """The first VOC result; ValueError if none was asked for."""
        for one in self.results.values():
            if isinstance(one, VOCResult):
                return one
        raise ValueError(f"no VOC metric among {', '.join(self.results)}")


def label_pixels(labels: np.ndarray, size: Size) -> np.ndarray:
    """Objects (n, 6) float64 in pixels, on the GRID, of those of a record: corners are fractions of the image."""
    objects = labels.astype(np.float64)
    objects[:, 1:5] = on_grid(np.clip(objects[:, 1:5], 0, 1) * np.tile(size[::-1], 2))
    return objects


def split_rows(rows: np.ndarray, images: int) -> list[np.ndarray]:
    """Rows (n, 1 + c) whose first column is the number of the image, as (m, c) of each of so many images.

    Within an image they keep their order.
    """
    ordered = rows[np.argsort(rows[:, 0], kind="stable")]
    bounds = np.searchsorted(ordered[:, 0], np.arange(images + 1))
    return [ordered[begin:end, 1:] for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]


def coco_rows(
    detections: np.ndarray, truths: np.ndarray, use_difficult: bool = False, has_areas: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Detections (n, 7) and objects (g, 8) as coco_eval takes them, of rows as those of Results.

    Difficult objects are crowds unless use_difficult; without has_areas areas are NaN.
    """
    sides = truths[:, 4:6] - truths[:, 2:4]
    area = sides.prod(axis=1) if has_areas else np.full(len(truths), np.nan)
    crowd = (truths[:, 6] > 0) & (not use_difficult)
    found = np.column_stack([detections[:, :5], detections[:, 5:7] - detections[:, 3:5]])
    return found, np.column_stack([truths[:, :4], sides, area, crowd])


def voc_rule(kind: str, overlap: float, use_difficult: bool) -> VOCRule:
    """The rule of a kind of metric, voc07 or voc."""
    return VOCRule(iou_threshold=overlap, use_07_metric=kind == VOC07, use_difficult=use_difficult)


def measure(
    results: Results, kinds: Sequence[str], overlap: float = 0.5, use_difficult: bool = False
) -> dict[str, VOCResult | COCOResult]:
    """The metrics of these kinds (config.groups.METRICS), as ValidationMetric gives them for the same detections."""
    measured: dict[str, VOCResult | COCOResult] = {}
    for kind in kinds:
        if kind == COCO:
            rows = coco_rows(results.detections, results.truths, use_difficult)
            measured[kind] = coco_eval(*rows, results.class_names)
        else:
            rule = voc_rule(kind, overlap, use_difficult)
            measured[kind] = voc_eval(results.detections, results.truths, results.class_names, rule)
    return measured
