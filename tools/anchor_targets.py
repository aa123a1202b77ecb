"""The anchors of a network before and after fitting: those of YOLOv3 and those of SSD under one interface."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from boxes.anchor_fit import MapShape, Places, fit_anchors, fit_ssd, quality, ssd_sizes
from boxes.anchors import AnchorLayer, cell_centres, multibox_prior
from boxes.geometry import iou
from common.errors import OptionError
from common.sizes import Size
from train.options import TrainOptions, network_options

CHUNK = 256  # objects compared with all placed anchors at a time
SIZE_DIGITS, RATIO_DIGITS, PIXEL_DIGITS = 4, 3, 1


class Family(Protocol):
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

    def fit(self, boxes: np.ndarray, generations: int, seed: int) -> "Family":
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


def family_of(run: TrainOptions) -> Family:
    """The anchors that train.py's options give its network; OptionError where the options do not fit together."""
    from symbol import registry

    network = run.input.network
    kind = registry.family_of(network)
    fitted: dict[str, Callable[[TrainOptions], Family]] = {kind.FRACTIONS: _ssd, kind.PIXELS: _yolo}
    if kind.anchors not in fitted:
        raise OptionError(
            f"--network {network}: the anchors of {kind.name} are {kind.anchors}; this tool is for networks whose "
            f"anchors are {' or '.join(fitted)}"
        )
    return fitted[kind.anchors](run)


def _yolo(run: TrainOptions) -> YOLOFamily:
    from common.sizes import input_size
    from symbol import registry
    from symbol.darknet_sections import Yolo
    from symbol.detector.yolo import customise
    from symbol.symbol_factory import get_assigner

    network, size = run.input.network, input_size(run.input.data_shape)
    options: Any = run.net
    assigner: Any = get_assigner(network, size, 1, **network_options(run))  # refuses what the network cannot take
    sections = customise(registry.family_of(network).row(network, size, options), options)
    anchors = next(section.anchors for section in sections if isinstance(section, Yolo))
    return YOLOFamily(size, run.input.resize_mode, assigner.iou_threshold, np.array(anchors, float))


def _ssd(run: TrainOptions) -> SSDFamily:
    from common.sizes import input_size
    from symbol.symbol_factory import get_assigner

    size = input_size(run.input.data_shape)
    assigner: Any = get_assigner(run.input.network, size, 1, **network_options(run) | {"targets": "paper"})
    shapes = assigner.feature_shapes[size]
    return SSDFamily(size, run.input.resize_mode, assigner.threshold, assigner.layers, shapes)


def _rounded(values: np.ndarray, digits: int) -> tuple[float, ...]:
    """Rounded values, none of them 0."""
    return tuple(np.maximum(np.round(values, digits), 10.0**-digits).tolist())


def _lists(rows: Sequence[Sequence[float]]) -> str:
    return "; ".join(",".join(f"{value:.10g}" for value in row) for row in rows)
