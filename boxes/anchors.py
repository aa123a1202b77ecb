"""Anchors (priors, default boxes) of MultiBoxPrior and of ssd.pytorch's PriorBox, and the offsets of boxes from them.

Offsets as in SSD, section 2.2, with variances as in Caffe SSD.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boxes.geometry import centres_to_corners, clip_to_unit, corners_to_centres
from common.sizes import Size


@dataclass(frozen=True)
class AnchorLayer:
    """Anchors of one feature map, with the parameters of MultiBoxPrior.

    Attributes:
        sizes: anchor sizes as fractions of the image side.
        ratios: width / height; ratios[0] goes with every size, the others with sizes[0] alone.
        step: (y, x) distance of the cells as fractions of the image; (-1, -1) = 1 / feature map size.
        offset: (y, x) place of the centre in its cell, in [0, 1].
        clip: limit the corners to the image.
        clip_centres: limit the four numbers of the centre form to [0, 1], as ssd.pytorch does; the operator cannot.
    """

    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    step: tuple[float, float] = (-1.0, -1.0)
    offset: tuple[float, float] = (0.5, 0.5)
    clip: bool = False
    clip_centres: bool = False

    def __post_init__(self) -> None:
        if not self.sizes or not self.ratios or min(*self.sizes, *self.ratios, 1.0) <= 0:
            raise ValueError(f"anchors need positive sizes and ratios, not {self.sizes} and {self.ratios}")
        if (self.step[0] > 0) != (self.step[1] > 0):
            raise ValueError(f"both steps are given or both are -1, not {self.step}")

    @property
    def per_cell(self) -> int:
        """Anchors in each cell of the feature map."""
        return len(self.sizes) + len(self.ratios) - 1


def multibox_prior(feature_shape: Size, layer: AnchorLayer) -> np.ndarray:
    """Corner anchors (h * w * per_cell, 4) float32, as mx.nd.contrib.MultiBoxPrior gives them.

    Rows y, columns x, then in each cell all sizes with ratios[0] and sizes[0] with the other ratios. The widths are
    multiplied by h / w of the feature map, so that ratio 1 is square in pixels. float32 arithmetic as in the operator;
    clip_centres is applied to its result.
    """
    height, width = feature_shape
    centre_y, centre_x = cell_centres(feature_shape, layer)
    half_w, half_h = _half_sizes(feature_shape, layer)
    anchors = np.empty((height, width, layer.per_cell, 4), np.float32)
    anchors[..., 0] = centre_x[None, :, None] - half_w
    anchors[..., 1] = centre_y[:, None, None] - half_h
    anchors[..., 2] = centre_x[None, :, None] + half_w
    anchors[..., 3] = centre_y[:, None, None] + half_h
    anchors = anchors.reshape(-1, 4)  # (h * w * per_cell, 4)
    anchors = clip_to_unit(anchors) if layer.clip else anchors
    return centres_to_corners(clip_to_unit(corners_to_centres(anchors))) if layer.clip_centres else anchors


def cell_centres(feature_shape: Size, layer: AnchorLayer) -> tuple[np.ndarray, np.ndarray]:
    """Normalised y (h,) and x (w,) of the centres of a map's cells, float32 as in MultiBoxPrior."""
    places = zip(feature_shape, layer.step, layer.offset, strict=True)
    centre_y, centre_x = (_centres(*place) for place in places)
    return centre_y, centre_x


def ssd_priors(prior_config: Mapping[str, Any]) -> np.ndarray:
    """Centre-form priors (A, 4) float32 of ssd.pytorch's PriorBox (SSD, section 2.2).

    Args:
        prior_config: min_dim (image side), feature_maps (sides), steps, min_sizes, max_sizes (all in pixels),
            aspect_ratios (per map, without 1 and without inverses), clip (of the centre-form numbers).
    In each cell: min_size square, sqrt(min * max) square, (ratio, 1 / ratio) pairs; centres are (cell + .5) * step.
    """
    fields = ("feature_maps", "steps", "min_sizes", "max_sizes", "aspect_ratios")
    rows = zip(*(prior_config[field] for field in fields), strict=True)
    side = prior_config["min_dim"]
    priors = np.concatenate([_prior_map(side, *row) for row in rows])
    return (np.clip(priors, 0, 1) if prior_config["clip"] else priors).astype(np.float32)


def _prior_map(side: int, cells: int, step: float, low: float, high: float, ratios: list[float]) -> np.ndarray:
    """Priors (cells * cells * (2 + 2 * ratios), 4) of one map, float64."""
    shapes = [(low, low), (np.sqrt(low * high),) * 2]
    for root in np.sqrt(ratios):
        shapes += [(low * root, low / root), (low / root, low * root)]
    priors = np.empty((cells, cells, len(shapes), 4))
    centres = (np.arange(cells) + 0.5) * step
    priors[..., 0] = centres[None, :, None]
    priors[..., 1] = centres[:, None, None]
    priors[..., 2:] = shapes
    return priors.reshape(-1, 4) / side


def _centres(cells: int, step: float, offset: float) -> np.ndarray:
    """float32 centres (cells,) of the cells along one axis."""
    pitch = np.float32(step) if step > 0 else np.float32(1) / np.float32(cells)
    return (np.arange(cells, dtype=np.float32) + np.float32(offset)) * pitch


def _half_sizes(feature_shape: Size, layer: AnchorLayer) -> tuple[np.ndarray, np.ndarray]:
    """Half widths and half heights (per_cell,) float32 of the anchors of a cell."""
    height, width = feature_shape
    sizes = np.array(layer.sizes + layer.sizes[:1] * (len(layer.ratios) - 1), np.float32)
    ratios = np.array(layer.ratios[:1] * len(layer.sizes) + layer.ratios[1:], np.float32)
    roots = np.sqrt(ratios)
    return sizes * np.float32(height) / np.float32(width) * roots / 2, sizes / roots / 2


def expand_variances(variances: Sequence[float], dtype: np.dtype | type = np.float32) -> np.ndarray:
    """(4,) variances of cx, cy, w, h from 2 numbers (centre, size) or 4.

    Raises:
        ValueError: another count, or a number that is not positive.
    """
    if len(variances) not in (2, 4) or min(variances) <= 0:
        raise ValueError(f"variances are 2 or 4 positive numbers, not {variances}")
    return np.repeat(np.asarray(variances, dtype), 4 // len(variances))


def encode(boxes: np.ndarray, anchors: np.ndarray, variances: Sequence[float]) -> np.ndarray:
    """Offsets (n, 4) that take each anchor to its box: ((gx-ax)/aw, (gy-ay)/ah, ln(gw/aw), ln(gh/ah)) / variances.

    Args:
        boxes: (n, 4) corners, one per anchor; a box without width or height gives -inf, callers drop such objects.
        anchors: (n, 4) centre form, sizes > 0.
        variances: 2 or 4 numbers.
    """
    boxes = corners_to_centres(boxes)
    with np.errstate(divide="ignore"):
        size = np.log(boxes[:, 2:] / anchors[:, 2:])
    centre = (boxes[:, :2] - anchors[:, :2]) / anchors[:, 2:]
    return np.concatenate([centre, size], axis=1) / expand_variances(variances, size.dtype)


def decode(offsets: np.ndarray, anchors: np.ndarray, variances: Sequence[float]) -> np.ndarray:
    """Corner boxes (..., 4) from offsets (..., 4) and centre-form anchors (..., 4): inverse of encode; not clipped."""
    scaled = offsets * expand_variances(variances, offsets.dtype)
    half = anchors[..., 2:] * np.exp(scaled[..., 2:]) / 2
    centre = anchors[..., :2] + scaled[..., :2] * anchors[..., 2:]
    return np.concatenate([centre - half, centre + half], axis=-1)
