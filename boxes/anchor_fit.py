"""Anchors for a data set: k-means and mutation on 1 - IoU of widths and heights (YOLOv2, section 2). Numpy only.

Sizes are (n, 2) rows (w, h) in one unit, such as pixels of the network input; boxes of equal centres are compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from boxes.geometry import wh_iou

MUTATED = 0.9  # probability that a parameter changes in a mutation, and by which factor: exp(normal * SPREAD);
SPREAD = 0.1  # both as in kmean_anchors of ultralytics/yolov3 (utils/autoanchor.py)
STARTS = 8  # of k-means, which finds one of several local optima
MAX_ROUNDS = 100  # of k-means, which ends by itself when no object changes its cluster
RATIO_BOUNDS = (0.1, 10.0)
TINY_STEP = 1e-6  # between the sizes of maps whose clusters are equal
# Parameters (p,) -> how good they are; NOT_ALLOWED where they make no anchors.
Score = Callable[[np.ndarray], float]
NOT_ALLOWED = -1.0
Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Coverage:
    """How well anchors suit objects.

    Attributes:
        recall: best possible recall, the share of objects whose best anchor has an IoU above the threshold.
        mean_iou: mean over the objects of the IoU with their best anchor.
    """

    recall: float
    mean_iou: float


@dataclass(frozen=True)
class MapShape:
    """How many sizes and ratios the anchors of one SSD map have; each cell has sizes + ratios - 1 anchors."""

    sizes: int
    ratios: int


@dataclass(frozen=True)
class Places:
    """Where the cells of SSD maps lie, as seen from objects.

    Attributes:
        offsets: (maps, n, 2) x and y distances from each object's centre to that of the nearest cell of each map, in
            the unit of the objects' sizes. No other cell's anchor of the same size overlaps the object more.
        widths: (maps,) what widths of anchors are multiplied by on a map of other proportions than the input's.
    """

    offsets: np.ndarray
    widths: np.ndarray


def best_iou(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """IoU (n,) of each object of sizes (n, 2) with its best anchor of (k, 2)."""
    return wh_iou(sizes, anchors).max(axis=1)


def coverage(overlaps: np.ndarray, threshold: float) -> Coverage:
    """Coverage of objects with best IoUs (n,), n > 0; the threshold itself is not above it."""
    return Coverage(float((overlaps > threshold).mean()), float(overlaps.mean()))


def quality(overlaps: np.ndarray, threshold: float) -> float:
    """Recall plus mean IoU of objects with best IoUs (n,): the mean alone would give up what is rare and small."""
    found = coverage(overlaps, threshold)
    return found.recall + found.mean_iou


def kmeans(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2) centres of sizes (n, 2), n > 0, by the distance 1 - IoU; ascending area.

    The best by mean IoU of all rounds from several random starts. Fewer distinct sizes than centres give equal centres.
    """
    found = [_kmeans_once(sizes, _spread_out(sizes, count, rng)) for _ in range(STARTS)]
    return _by_area(max(found, key=lambda centres: best_iou(sizes, centres).mean()))


def _kmeans_once(sizes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The best centres (k, 2) of all rounds from the given ones; means need not raise the mean IoU."""
    best, best_score, members = centres, -1.0, np.full(len(sizes), -1)
    for _ in range(MAX_ROUNDS):
        overlaps = wh_iou(sizes, centres)
        score = overlaps.max(axis=1).mean()
        if score > best_score:
            best, best_score = centres, score
        nearest = overlaps.argmax(axis=1)
        if (nearest == members).all():
            break
        members = nearest
        centres = _means(sizes, members, centres)
    return best


def evolve(
    start: np.ndarray, score: Score, generations: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[float]]:
    """Mutates positive parameters (p,) and keeps what raises their score.

    Returns the best parameters and the score after 0, 1, ... generations, which never falls. ValueError unless `start`
    is allowed.
    """
    best, highest = start, score(start)
    if highest == NOT_ALLOWED:
        raise ValueError(f"the start {start} is not allowed")
    history = [highest]
    for _ in range(generations):
        changed = rng.random(best.shape) < MUTATED
        mutant = best * np.exp(changed * rng.standard_normal(best.shape) * SPREAD)
        found = score(mutant)
        if found > highest:
            best, highest = mutant, found
        history.append(highest)
    return best, history


def fit_anchors(
    sizes: np.ndarray, count: int, generations: int, seed: int, start: np.ndarray | None = None
) -> np.ndarray:
    """(count, 2) anchors of ascending area for objects of sizes (n, 2), n > 0, all positive.

    k-means, then mutations. `start` (count, 2): anchors that are mutated instead if they are better than the k-means',
    so that the result is never worse than they are. The same seed gives the same anchors.
    """
    rng = np.random.default_rng(seed)
    begin = kmeans(sizes, count, rng)
    if start is not None and best_iou(sizes, start).mean() > best_iou(sizes, begin).mean():
        begin = start

    def score(flat: np.ndarray) -> float:
        return float(best_iou(sizes, flat.reshape(count, 2)).mean())

    found, _ = evolve(begin.ravel(), score, generations, rng)
    return _by_area(found.reshape(count, 2))


def ssd_sizes(layers: Sequence[tuple[Numbers, Numbers]]) -> np.ndarray:
    """(k, 2) sizes of the anchors that (sizes, ratios) of each map make, in the order of MultiBoxPrior's cells.

    All sizes with ratios[0], then sizes[0] with the other ratios; w = size * sqrt(ratio), h = size / sqrt(ratio).
    """
    return np.concatenate([_map_sizes(np.asarray(sizes, float), np.asarray(ratios, float)) for sizes, ratios in layers])


def fit_ssd(
    sizes: np.ndarray,
    shapes: Sequence[MapShape],
    generations: int,
    seed: int,
    start: Sequence[tuple[Numbers, Numbers]] | None = None,
    places: Places | None = None,
    threshold: float = 1.0,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(sizes, ratios) for every map, so that MultiBoxPrior's boxes cover objects of sizes (n, 2), n > 0, all positive.

    Sizes are sides in the unit of `sizes`; ratios begin with 1 on every map. Maps divide the objects by size: their
    first sizes ascend. `start`: of the same shapes; used as in fit_anchors if its first ratios are 1 and first sizes
    ascend. `places`: overlaps are those of the anchors in their cells; None = of equal centres. What rises is the
    sum of Coverage's recall, above `threshold`, and mean_iou. ValueError without a map.
    """
    if not shapes:
        raise ValueError("no feature maps")
    rng = np.random.default_rng(seed)
    candidates = [_flat(_ssd_start(sizes, shapes, rng))]
    if start is not None and all(ratios[0] == 1 for _, ratios in start):
        candidates.append(_flat(start))

    def score(flat: np.ndarray) -> float:
        layers = _unflat(flat, shapes)
        return quality(best_ssd_iou(sizes, layers, places), threshold) if _is_ordered(layers) else NOT_ALLOWED

    found, _ = evolve(max(candidates, key=score), score, generations, rng)
    return _unflat(found, shapes)


def best_ssd_iou(
    sizes: np.ndarray, layers: Sequence[tuple[Numbers, Numbers]], places: Places | None = None
) -> np.ndarray:
    """IoU (n,) of each object of sizes (n, 2) with its best anchor of (sizes, ratios) of each map."""
    if places is None:
        return best_iou(sizes, ssd_sizes(layers))
    maps = zip(layers, places.offsets, places.widths, strict=True)
    return np.max(
        [_placed_iou(sizes, ssd_sizes([layer]) * (width, 1), offsets) for layer, offsets, width in maps], axis=0
    )


def _placed_iou(sizes: np.ndarray, anchors: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Best IoU (n,) of sizes (n, 2) with anchors (k, 2) whose centres are offsets (n, 2) away."""
    sides, wide = sizes[:, None], anchors[None]
    sums = (sides + wide) / 2 - np.abs(offsets[:, None])  # (n, k, 2)
    common = np.clip(np.minimum(sums, np.minimum(sides, wide)), 0, None).prod(axis=2)  # (n, k)
    union = sizes.prod(axis=1)[:, None] + anchors.prod(axis=1) - common
    return (common / union).max(axis=1)


def _spread_out(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2) first centres: objects drawn in proportion to their squared distance (k-means++)."""
    chosen = [int(rng.integers(len(sizes)))]
    distance = np.ones(len(sizes))
    while len(chosen) < count:
        distance = np.minimum(distance, 1 - wh_iou(sizes, sizes[chosen[-1:]])[:, 0])
        weights = np.maximum(distance, 0) ** 2
        total = weights.sum()
        chosen.append(int(rng.choice(len(sizes), p=weights / total if total > 0 else None)))
    return sizes[chosen].astype(np.float64)


def _means(sizes: np.ndarray, members: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Mean sizes (k, 2) of the clusters; an empty cluster keeps its centre."""
    counts = np.bincount(members, minlength=len(centres))
    sums = np.column_stack([np.bincount(members, column, len(centres)) for column in sizes.T])
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)


def _by_area(anchors: np.ndarray) -> np.ndarray:
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]


def _map_sizes(sizes: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    sides = np.concatenate([sizes, np.repeat(sizes[:1], len(ratios) - 1)])
    roots = np.sqrt(np.concatenate([np.repeat(ratios[:1], len(sizes)), ratios[1:]]))
    return np.column_stack([sides * roots, sides / roots])


def _ssd_start(
    sizes: np.ndarray, shapes: Sequence[MapShape], rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Clusters of sizes (as squares), one for each map; its sizes and ratios are quantiles of the cluster."""
    sides = np.sqrt(sizes.prod(axis=1))
    centres = kmeans(np.column_stack([sides, sides]), len(shapes), rng)[:, 0]
    nearest = np.abs(np.log(sides[:, None] / centres)).argmin(axis=1)
    layers = []
    for k, shape in enumerate(shapes):
        own = sizes[nearest == k] if (nearest == k).any() else np.full((1, 2), centres[k])
        spread = np.quantile(np.sqrt(own.prod(axis=1)), _middles(shape.sizes))
        ratios = np.exp(np.quantile(np.log(own[:, 0] / own[:, 1]), _middles(shape.ratios - 1)))
        layers.append((spread, np.concatenate([[1.0], np.clip(ratios, *RATIO_BOUNDS)])))
    firsts = np.array([own[0] for own, _ in layers])
    ordered = np.maximum.accumulate(firsts) * (1 + TINY_STEP * np.arange(len(shapes)))
    return [(own * factor, ratios) for (own, ratios), factor in zip(layers, ordered / firsts, strict=True)]


def _middles(count: int) -> np.ndarray:
    """Middles (count,) of as many equal parts of [0, 1]."""
    return (np.arange(count) + 0.5) / max(count, 1)


def _is_ordered(layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether first sizes ascend over the maps and ratios are within their bounds."""
    firsts = np.array([sizes[0] for sizes, _ in layers])
    low, high = RATIO_BOUNDS
    return bool((np.diff(firsts) > 0).all()) and all(((low <= r) & (r <= high)).all() for _, r in layers)


def _flat(layers: Sequence[tuple[Numbers, Numbers]]) -> np.ndarray:
    """Parameters (p,) of (sizes, ratios) of each map, without the first ratios, which are 1."""
    return np.concatenate([np.asarray([*sizes, *ratios[1:]], float) for sizes, ratios in layers])


def _unflat(flat: np.ndarray, shapes: Sequence[MapShape]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The inverse of _flat."""
    bounds = np.cumsum([shape.sizes + shape.ratios - 1 for shape in shapes])[:-1]
    parts = zip(np.split(flat, bounds), shapes, strict=True)
    return [(part[: shape.sizes], np.concatenate([[1.0], part[shape.sizes :]])) for part, shape in parts]
