from typing import Any

import numpy as np
import pytest

from boxes.geometry import centres_to_corners
from boxes.yolo_assigner import YOLOAssigner
from machine.runtime import mx
from symbol.backbone.darknet import Level
from symbol.network_options import YOLOOptions
from symbol.yolo_losses import LABELS, Boxes, cross_entropy, paired_overlap, yolo_losses
from tests.symbol.yolo_loss_runner import Labels, batch_labels, reference_losses, run_yolo_losses, sigmoid

CLASSES = 3
STRIDES = (32, 16)
ANCHORS = (((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)), ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)))
ASSIGNER = YOLOAssigner(ANCHORS, STRIDES, max_targets=60)
SIZE = (96, 160)


def random_objects(rng: np.random.Generator, count: int) -> np.ndarray:
    """Objects (n, 6) of all sizes; in a few cells there are several."""
    centres = np.column_stack([rng.random((count, 2)), rng.uniform(0.1, 0.9, (count, 2))])
    centres[1::3, :2] = centres[: len(centres[1::3]), :2]
    ids = rng.integers(0, CLASSES, count)
    return np.column_stack([ids, centres_to_corners(centres), np.zeros(count)])


def random_maps(rng: np.random.Generator, images: int, classes: int = CLASSES, scale: float = 1.0) -> list[np.ndarray]:
    """Raw predictions (B, anchors * (5 + C), h, w) of every map."""
    shapes = [
        (images, len(a) * (5 + classes), SIZE[0] // s, SIZE[1] // s) for a, s in zip(ANCHORS, STRIDES, strict=True)
    ]
    return [rng.normal(0, scale, shape).astype(np.float32) for shape in shapes]


def labels_of(counts: list[int], seed: int = 0, padding: int = 0) -> Labels:
    """Labels of images with the given numbers of objects, then padding rows."""
    rng = np.random.default_rng(seed)
    return batch_labels(ASSIGNER, [random_objects(rng, count) for count in counts], SIZE, padding)


def total(losses: Labels) -> float:
    return float(sum(loss.sum() for loss in losses.values()))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"box_loss": "iou"},
    {"box_loss": "diou", "fl_gamma": 1.5},
    {"box_loss": "ciou", "gr": 0.3, "label_smoothing": 0.1},
    {"cls_pw": 1.7, "obj_pw": 0.6, "giou_gain": 1.0, "cls_gain": 0.5, "obj_gain": 2.0},
    {"fl_gamma": 0.5, "obj_pw": 2.0},
    {"scale": 1.2, "box_loss": "diou"},
    {"scale": 2.0, "new_coords": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("counts", [[0, 0], [4, 0], [7, 12]], ids=str)
def test_losses_are_the_sums_over_positives_and_cells(counts: list[int], options: dict[str, Any]) -> None:
    labels = labels_of(counts)
    assert (counts[1] < 12) or (labels["yolo_target"][..., 0] >= 0).sum() > labels["yolo_target"][..., -1].sum()
    maps = random_maps(np.random.default_rng(1), len(counts))
    got = run_yolo_losses(maps, labels, STRIDES, CLASSES, **options).losses
    for name, loss in reference_losses(maps, labels, STRIDES, CLASSES, **options).items():
        np.testing.assert_allclose(got[name], loss, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("options", [*OPTIONS[:3], *OPTIONS[-2:], {"fl_gamma": 2.0, "cls_pw": 1.5}], ids=str)
@pytest.mark.parametrize("counts", [[0], [5], [100]], ids=str)
def test_gradients_are_those_of_the_losses(counts: list[int], options: dict[str, Any]) -> None:
    """Along random directions; gr 0, because the objectness target is a constant to the gradient."""
    options = {**options, "gr": 0.0}
    big = YOLOAssigner(ANCHORS, STRIDES)
    labels = batch_labels(big, [random_objects(np.random.default_rng(2), count) for count in counts], SIZE)
    rng = np.random.default_rng(3)
    maps = random_maps(rng, len(counts))
    grads = run_yolo_losses(maps, labels, STRIDES, CLASSES, **options).grads
    for _ in range(4):
        step = [rng.normal(0, 1e-4, raw.shape) for raw in maps]
        moved = [
            total(
                reference_losses(
                    [m + sign * d for m, d in zip(maps, step, strict=True)], labels, STRIDES, CLASSES, **options
                )
            )
            for sign in (1, -1)
        ]
        slope = sum(float((grad * d).sum()) for grad, d in zip(grads, step, strict=True))
        scale = sum(float(np.abs(grad * d).sum()) for grad, d in zip(grads, step, strict=True))
        np.testing.assert_allclose(slope, (moved[0] - moved[1]) / 2, rtol=1e-3, atol=1e-5 * scale)


def test_the_objectness_target_is_a_constant() -> None:
    maps, labels = random_maps(np.random.default_rng(4), 2), labels_of([5, 5])
    grads = run_yolo_losses(maps, labels, STRIDES, CLASSES, giou_gain=0.0, cls_gain=0.0).grads
    for grad in grads:
        by_channel = grad.reshape(len(grad), -1, 5 + CLASSES, *grad.shape[2:])
        assert not np.delete(by_channel, 4, axis=2).any()
        assert by_channel[:, :, 4].all()


def test_padding_images_contribute_nothing() -> None:
    rng = np.random.default_rng(5)
    maps = random_maps(rng, 4)
    want = run_yolo_losses([raw[:3] for raw in maps], labels_of([3, 0, 9]), STRIDES, CLASSES)
    got = run_yolo_losses(maps, labels_of([3, 0, 9], padding=1), STRIDES, CLASSES)
    for name, loss in want.losses.items():
        np.testing.assert_allclose(got.losses[name], [*loss, 0], rtol=1e-6)
    for grad, other in zip(got.grads, want.grads, strict=True):
        np.testing.assert_allclose(grad[:3], other, rtol=1e-5, atol=1e-9)
        assert not grad[3].any()


def test_parts_with_the_normaliser_of_the_whole_make_up_the_whole() -> None:
    maps, labels = random_maps(np.random.default_rng(6), 4), labels_of([0, 8, 2, 11])
    whole = run_yolo_losses(maps, labels, STRIDES, CLASSES)
    for part in (slice(0, 2), slice(2, 4)):
        alone = {name: array[part] for name, array in labels.items()}
        result = run_yolo_losses([raw[part] for raw in maps], alone, STRIDES, CLASSES)
        for name, loss in whole.losses.items():
            np.testing.assert_allclose(result.losses[name], loss[part], rtol=1e-5)
        for grad, other in zip(result.grads, whole.grads, strict=True):
            np.testing.assert_allclose(grad, other[part], rtol=1e-5, atol=1e-8)


def test_one_class_has_no_class_loss() -> None:
    maps = random_maps(np.random.default_rng(7), 2, classes=1)
    rng = np.random.default_rng(7)
    images = [random_objects(rng, 4) * [0, 1, 1, 1, 1, 1] for _ in range(2)]
    result = run_yolo_losses(maps, batch_labels(ASSIGNER, images, SIZE), STRIDES, 1)
    assert list(result.losses) == ["box_loss", "obj_loss"]
    assert not any(grad.reshape(2, -1, 6, *grad.shape[2:])[:, :, 5].any() for grad in result.grads)


@pytest.mark.parametrize("kind", ["giou", "iou", "diou", "ciou"])
@pytest.mark.parametrize("logit", [-1e4, -200.0, 0.0, 200.0, 1e4])
def test_saturated_predictions_have_finite_losses_and_gradients(logit: float, kind: str) -> None:
    maps = [np.full_like(raw, logit) for raw in random_maps(np.random.default_rng(8), 2)]
    for gamma in (0.0, 0.5, 2.0):
        result = run_yolo_losses(maps, labels_of([6, 0]), STRIDES, CLASSES, box_loss=kind, fl_gamma=gamma)
        assert all(np.isfinite(array).all() for array in [*result.losses.values(), *result.grads])


def test_identical_boxes_have_a_ciou_of_1_and_no_gradient_that_is_nan() -> None:
    boxes = mx.nd.array([[3.0, 4.0, 2.0, 1.0], [0.5, 0.5, 0.25, 7.0]])
    boxes.attach_grad()
    box, other = mx.sym.var("box"), mx.sym.var("other")
    pair = [Boxes(*(mx.sym.slice_axis(b, axis=1, begin=k, end=k + 2) for k in (0, 2))) for b in (box, other)]
    executor = paired_overlap(*pair, "ciou").bind(mx.cpu(), [boxes, boxes.copy()], args_grad={"box": boxes.grad})
    overlap = executor.forward(is_train=True)[0]
    executor.backward(mx.nd.ones(2))
    np.testing.assert_allclose(overlap.asnumpy(), 1, rtol=1e-6)
    assert np.isfinite(boxes.grad.asnumpy()).all()


@pytest.mark.parametrize("target", [0.0, 1.0, 0.3])
def test_cross_entropy_keeps_its_relative_accuracy(target: float) -> None:
    logits = np.array([-300, -100, -80, -20, -1, 0, 1, 20, 80, 100, 300], np.float32)
    data = mx.nd.array(logits)
    data.attach_grad()
    loss = cross_entropy(mx.sym.var("x"), mx.sym.var("t"))
    executor = loss.bind(mx.cpu(), {"x": data, "t": mx.nd.full(len(logits), target)}, args_grad={"x": data.grad})
    value = executor.forward(is_train=True)[0].asnumpy()
    executor.backward(mx.nd.ones(len(logits)))
    exact = logits.astype(np.float64)
    want = (1 - target) * np.logaddexp(0, exact) + target * np.logaddexp(0, -exact)
    slope = (1 - target) * sigmoid(exact) - target * sigmoid(-exact)
    np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(data.grad.asnumpy(), slope, rtol=2e-6, atol=1e-37)


def test_one_symbol_serves_every_input_size() -> None:
    """And the objectness gain follows the longer side."""
    outputs = yolo_losses(
        [Level(mx.sym.var(f"map{k}"), (), stride) for k, stride in enumerate(STRIDES)], CLASSES, YOLOOptions()
    )
    losses = []
    for height, width in (SIZE, (192, 96)):
        shapes = {f"map{k}": (2, 3 * (5 + CLASSES), height // s, width // s) for k, s in enumerate(STRIDES)}
        labels = batch_labels(ASSIGNER, [np.zeros((0, 6))] * 2, (height, width))
        arrays = {name: mx.nd.array(array) for name, array in labels.items()}
        arrays |= {name: mx.nd.zeros(shape) for name, shape in shapes.items()}
        executor = mx.sym.Group(outputs).bind(mx.cpu(), arrays)
        losses.append(executor.forward()[1].asnumpy())
    cells = np.log(2) * len(STRIDES) * YOLOOptions().obj_gain / 320 / 2
    np.testing.assert_allclose(losses, [[cells * 160] * 2, [cells * 192] * 2], rtol=1e-5)


def test_the_labels_are_those_of_the_assigner() -> None:
    assert set(LABELS) == set(ASSIGNER.shapes(SIZE))
