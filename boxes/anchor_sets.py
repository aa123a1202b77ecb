"""The anchors of a network as tools/anchors.py fits them; a family makes them (symbol/family.py). Numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from boxes.anchor_fit import MapShape, Places, fit_anchors, fit_ssd, quality, ssd_sizes
from boxes.anchors import AnchorLayer, cell_centres, multibox_prior
from boxes.geometry import iou
from common.sizes import Size

CHUNK = 256  # objects compared with all placed anchors at a time
SIZE_DIGITS, RATIO_DIGITS, PIXEL_DIGITS = 4, 3, 1


class AnchorSet(Protocol):
    """The anchors of a network for an input of one size."""

    @property
    def size(self) -> Size:
        """(H, W) of the input."""

    @property
    def threshold(self) -> float:
        """IoU above which an anchor learns an object."""

    def anchors(self) -> np.ndarray:
        """Sizes (k, 2) in pixels of the input."""

    def placed_iou(self, boxes: np.ndarray) -> np.ndarray | None:
        """IoU (n,) of normalised boxes (n, 4) with the best anchor at its place; None where anchors have no place."""

    def fit(self, boxes: np.ndarray, generations: int, seed: int) -> "AnchorSet":
        """The same with anchors fitted to normalised boxes (n, 4); never worse than before, but for rounding."""

    def options(self) -> dict[str, Any]:
        """Options of train.py that give the network these anchors."""


@dataclass(frozen=True)
class PixelAnchors:
    """Anchors that are widths and heights (k, 2) in pixels of the input, the smallest first, as YOLO's.

    option: the one that gives them, as pairs.
    """

    size: Size
    threshold: float
    pixels: np.ndarray
    option: str

    def anchors(self) -> np.ndarray:
        """Sizes (k, 2) in pixels of the input."""
        return self.pixels

    def placed_iou(self, boxes: np.ndarray) -> np.ndarray | None:
        """None: these anchors have no place of their own."""
        return None

    def fit(self, boxes: np.ndarray, generations: int, seed: int) -> "PixelAnchors":
        """As many anchors, fitted to the sizes of normalised boxes (n, 4)."""
        found = fit_anchors(pixel_sizes(boxes, self.size), len(self.pixels), generations, seed, self.pixels)
        return replace(self, pixels=np.maximum(np.round(found, PIXEL_DIGITS), 10.0**-PIXEL_DIGITS))

    def options(self) -> dict[str, Any]:
        """The one option."""
        return {self.option: ", ".join(f"{w:.10g},{h:.10g}" for w, h in self.pixels)}


@dataclass(frozen=True)
class MapAnchors:
    """Anchors that are sizes and ratios of each map of (h, w) cells, as SSD's.

    sizes_option, ratios_option: those that give them.
    """

    size: Size
    threshold: float
    layers: tuple[AnchorLayer, ...]
    feature_shapes: tuple[Size, ...]
    sizes_option: str
    ratios_option: str

    def anchors(self) -> np.ndarray:
        """Sizes (k, 2) in pixels of the input, where the maps have the proportions of the input."""
        return ssd_sizes([(layer.sizes, layer.ratios) for layer in self.layers]) * self.size[0]

    def placed_iou(self, boxes: np.ndarray) -> np.ndarray:
        """IoU (n,) of normalised corner boxes (n, 4) with the best of MultiBoxPrior's boxes."""
        pairs = zip(self.feature_shapes, self.layers, strict=True)
        placed = np.concatenate([multibox_prior(shape, layer) for shape, layer in pairs]).astype(np.float64)
        starts = range(0, len(boxes), CHUNK)
        return np.concatenate([iou(boxes[k : k + CHUNK], placed).max(axis=1) for k in starts])

    def fit(self, boxes: np.ndarray, generations: int, seed: int) -> "MapAnchors":
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
        """The two options."""
        return {
            self.sizes_option: _lists([layer.sizes for layer in self.layers]),
            self.ratios_option: _lists([layer.ratios for layer in self.layers]),
        }


def pixel_sizes(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Widths and heights (n, 2) in pixels of normalised corner boxes (n, 4) in an input of size (H, W)."""
    return (boxes[:, 2:] - boxes[:, :2]) * (size[1], size[0])


def _rounded(values: np.ndarray, digits: int) -> tuple[float, ...]:
    """Rounded values, none of them 0."""
    return tuple(np.maximum(np.round(values, digits), 10.0**-digits).tolist())


def _lists(rows: Sequence[Sequence[float]]) -> str:
    return "; ".join(",".join(f"{value:.10g}" for value in row) for row in rows)
