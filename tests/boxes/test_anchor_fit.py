"""Fitted anchors: known clusters come back, nothing gets worse, the same seed gives the same anchors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxes.anchor_fit import (
    RATIO_BOUNDS,
    MapShape,
    best_iou,
    coverage,
    evolve,
    fit_anchors,
    fit_ssd,
    kmeans,
    quality,
    ssd_sizes,
)
from boxes.anchors import AnchorLayer, multibox_prior

CLUSTERS = np.array([[12, 10], [30, 60], [90, 80], [200, 100]], float)


def blobs(clusters, each=60, spread=0.05, seed=3):
    rng = np.random.default_rng(seed)
    return np.repeat(clusters, each, axis=0) * np.exp(rng.standard_normal((len(clusters) * each, 2)) * spread)


def sizes_strategy(low=1):
    side = st.floats(1, 500)
    return st.lists(st.tuples(side, side), min_size=low, max_size=40).map(np.array)


def test_kmeans_recovers_known_clusters():
    centres = kmeans(blobs(CLUSTERS), len(CLUSTERS), np.random.default_rng(0))
    assert np.abs(centres / CLUSTERS - 1).max() < 0.05


def test_fitted_anchors_recover_known_clusters_in_ascending_area():
    anchors = fit_anchors(blobs(CLUSTERS), len(CLUSTERS), 200, seed=0)
    assert np.abs(anchors / CLUSTERS - 1).max() < 0.05
    assert best_iou(blobs(CLUSTERS), anchors).mean() > 0.9


def test_the_same_seed_gives_the_same_anchors():
    sizes = blobs(CLUSTERS)
    first, second = (fit_anchors(sizes, 6, 50, seed=5) for _ in range(2))
    assert (first == second).all()
    assert (first != fit_anchors(sizes, 6, 50, seed=6)).any()


@settings(deadline=None, max_examples=40)
@given(sizes=sizes_strategy(), count=st.integers(1, 9), seed=st.integers(0, 99))
def test_mutation_never_lowers_the_mean_iou(sizes, count, seed):
    rng = np.random.default_rng(seed)
    start = kmeans(sizes, count, rng)
    best, history = evolve(start.ravel(), lambda flat: best_iou(sizes, flat.reshape(count, 2)).mean(), 30, rng)
    assert len(history) == 31
    assert (np.diff(history) >= 0).all()
    assert history[0] == pytest.approx(best_iou(sizes, start).mean())
    assert history[-1] == pytest.approx(best_iou(sizes, best.reshape(count, 2)).mean())


@settings(deadline=None, max_examples=40)
@given(sizes=sizes_strategy(), start=sizes_strategy().filter(lambda a: len(a) <= 9), seed=st.integers(0, 99))
def test_fit_is_never_worse_than_the_anchors_before(sizes, start, seed):
    anchors = fit_anchors(sizes, len(start), 20, seed, start)
    assert anchors.shape == start.shape
    assert (np.diff(anchors.prod(axis=1)) >= 0).all()
    assert best_iou(sizes, anchors).mean() >= best_iou(sizes, start).mean() - 1e-12


@settings(deadline=None, max_examples=40)
@given(sizes=sizes_strategy(), power=st.integers(-6, 6))
def test_the_unit_does_not_matter(sizes, power):
    """Powers of two scale without rounding, which would let k-means settle ties in another way."""
    assert np.allclose(fit_anchors(sizes * 2.0**power, 3, 0, 1), fit_anchors(sizes, 3, 0, 1) * 2.0**power)


def test_as_many_anchors_as_objects_cover_them_perfectly():
    overlaps = best_iou(CLUSTERS, fit_anchors(CLUSTERS, len(CLUSTERS), 0, 0))
    assert overlaps == pytest.approx(1)


def test_more_anchors_than_distinct_sizes():
    sizes = np.array([[10.0, 20.0]] * 3)
    assert np.allclose(fit_anchors(sizes, 9, 5, 0), [10, 20])


def test_coverage_counts_what_is_above_the_threshold():
    found = coverage(np.array([0.2, 0.5, 0.8, 0.1]), 0.2)
    assert found.recall == 0.5
    assert found.mean_iou == pytest.approx(0.4)


def test_ssd_sizes_are_those_of_multibox_prior():
    layer = AnchorLayer(sizes=(0.2, 0.3, 0.1), ratios=(2.0, 0.5, 3.0))
    boxes = multibox_prior((4, 4), layer)[: layer.per_cell]
    assert np.allclose(boxes[:, 2:] - boxes[:, :2], ssd_sizes([(layer.sizes, layer.ratios)]), atol=1e-6)


SHAPES = (MapShape(2, 3), MapShape(1, 3), MapShape(2, 1))


@settings(deadline=None, max_examples=40)
@given(sizes=sizes_strategy(), seed=st.integers(0, 99))
def test_ssd_maps_divide_the_objects_by_size(sizes, seed):
    layers = fit_ssd(sizes, SHAPES, 20, seed)
    assert [(len(own), len(ratios)) for own, ratios in layers] == [(s.sizes, s.ratios) for s in SHAPES]
    assert (np.diff([own[0] for own, _ in layers]) > 0).all()
    ratios = np.concatenate([ratios for _, ratios in layers])
    assert ((RATIO_BOUNDS[0] <= ratios) & (ratios <= RATIO_BOUNDS[1])).all()
    assert all(ratios[0] == 1 for _, ratios in layers)


@settings(deadline=None, max_examples=40)
@given(sizes=sizes_strategy())
def test_ssd_fit_is_never_worse_than_the_layers_before(sizes):
    before = [((10.0, 14.0), (1, 2, 0.5)), ((60.0,), (1, 2, 0.5)), ((200.0, 250.0), (1,))]
    after = fit_ssd(sizes, SHAPES, 10, 0, before, threshold=0.5)
    old, new = (quality(best_iou(sizes, ssd_sizes(layers)), 0.5) for layers in (before, after))
    assert new >= old - 1e-12


def test_quality_counts_what_is_learnt_beside_the_mean():
    assert quality(np.array([0.4, 0.5, 0.9]), 0.5) == pytest.approx(1 / 3 + 0.6)


def test_ssd_covers_known_clusters():
    sizes = blobs(CLUSTERS)
    layers = fit_ssd(sizes, (MapShape(1, 2), MapShape(1, 2), MapShape(1, 2), MapShape(1, 2)), 300, 0)
    assert best_iou(sizes, ssd_sizes(layers)).mean() > 0.85
