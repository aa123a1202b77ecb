"""Decoding of boxes and non-maximum suppression."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from boxes.geometry import corners_to_centres
from deploy.onnx_export.arrays import take_rows
from deploy.onnx_export.graph import VARIES, OnnxGraph, OperatorNode, Tensor, TranslationError

LOWEST = np.array(np.finfo(np.float32).min)  # below all scores
NO_DETECTION = np.array(-1, np.float32)
MULTIBOX_VARIANCES = (0.1, 0.1, 0.2, 0.2)
BOX_VALUES = 4
MOST_BOXES = np.iinfo(np.int32).max  # of a class that stay


class OnnxCandidates(NamedTuple):
    """Boxes (G, N, 4), their scores (G, N) and ids (G, N; None = all may suppress each other) of G groups."""

    boxes: str
    scores: str
    ids: str | None


def multibox_detection(graph: OnnxGraph, node: OperatorNode) -> str:
    """MultiBoxDetection: each anchor's best class; the nms_topk best anchors of at least `threshold` go on.

    Its output has a row for each anchor: the candidates by falling score, with id -1 where they are suppressed (at an
    IoU of at least nms_threshold), then rows of -1.
    """
    probabilities, offsets, anchors = node.inputs
    _, classes, count = probabilities.shape
    threshold, limit = (node.get(key, value) for key, value in (("threshold", 0.01), ("nms_threshold", 0.5)))
    if anchors.value is None or not 0 < limit <= 1:
        raise TranslationError(f"anchors that are not constant, or nms_threshold {limit}, outside (0, 1]")
    by_anchor = graph.add("Transpose", probabilities, perm=(0, 2, 1))  # (B, A, C + 1)
    by_anchor = graph.slice(by_anchor, 2, 1)  # (B, A, C)
    topk = node.get("nms_topk", -1)
    looked_at = min(topk, count) if topk > 0 else count
    best = graph.add("ReduceMax", by_anchor, axes=[2], keepdims=0)
    scores, places = graph.add_many("TopK", 2, best, np.array([looked_at]), axis=1)  # (B, K)
    ids = graph.add("ArgMax", take_rows(graph, by_anchor, places), axis=2, keepdims=0)
    ids = graph.cast(ids, TensorProto.FLOAT)
    boxes = decoded(
        graph,
        take_rows(graph, graph.reshape(offsets, (offsets.shape[0], count, BOX_VALUES)), places),
        graph.add("Gather", corners_to_centres(anchors.value[0]), places, axis=0),
        node.get("variances", MULTIBOX_VARIANCES),
    )
    if node.get("clip", True):
        boxes = graph.add("Clip", boxes, np.array(0, np.float32), np.array(1, np.float32))
    sound = graph.add("GreaterOrEqual", scores, np.array(threshold, np.float32))
    candidates = OnnxCandidates(boxes, graph.add("Where", sound, scores, LOWEST), None if _forced(node) else ids)
    # ONNX suppresses above its threshold, MultiBoxDetection from its threshold on.
    kept = suppress(graph, candidates, LOWEST / 2, np.nextafter(np.float32(limit), np.float32(0)), classes - 1)
    found = graph.add("Where", kept, ids, NO_DETECTION)
    rows = graph.add("Concat", *(graph.add("Unsqueeze", x, np.array([2])) for x in (found, scores)), boxes, axis=2)
    rows = graph.add("Where", graph.add("Unsqueeze", sound, np.array([2])), rows, NO_DETECTION)  # (B, K, 6)
    if looked_at == count:
        return rows
    return graph.add("Pad", rows, np.array([0, 0, 0, 0, count - looked_at, 0]), NO_DETECTION)


def _forced(node: OperatorNode) -> bool:
    return bool(node.get("force_suppress", False))


def box_nms(graph: OnnxGraph, node: OperatorNode) -> str:
    """box_nms: rows above valid_thresh that no better one suppresses (with an IoU above overlap_thresh), best first.

    Rows of -1 follow.
    """
    node.require("in_format", "corner")
    node.require("out_format", "corner")
    node.require("background_id", -1)
    node.require("topk", -1)
    data = node.inputs[0]
    count, width = data.shape[-2:]
    rows = data if len(data.shape) == 3 else graph.reshape(data, (VARIES, count, width))  # (G, N, W)
    score_index, id_index, start = (
        node.get(key, value) for key, value in (("score_index", 1), ("id_index", -1), ("coord_start", 2))
    )
    scores = graph.add("Gather", rows, np.array(score_index), axis=2)
    ids = None if id_index < 0 or _forced(node) else graph.add("Gather", rows, np.array(id_index), axis=2)
    candidates = OnnxCandidates(graph.slice(rows, 2, start, start + BOX_VALUES), scores, ids)
    valid = np.array(node.get("valid_thresh", 0), np.float32)
    kept = suppress(graph, candidates, valid, np.float32(node.get("overlap_thresh", 0.5)), graph.num_classes)
    left = graph.add("Where", kept, scores, LOWEST)
    best, places = graph.add_many("TopK", 2, left, np.array([count]), axis=1)
    sound = graph.add("Unsqueeze", graph.add("Greater", best, valid), np.array([2]))
    found = graph.add("Where", sound, take_rows(graph, rows, places), NO_DETECTION)
    return found if len(data.shape) == 3 else graph.reshape(found, node.shapes[0])


def suppress(
    graph: OnnxGraph, candidates: OnnxCandidates, above: np.ndarray, overlap: np.float32, num_classes: int
) -> str:
    """Booleans (G, N): which candidates with scores > above stay.

    A candidate goes if a better one of its id (of equally good ones the first) that stays has an IoU > overlap with it.
    """
    boxes, scores, ids = candidates
    by_class = graph.add("Unsqueeze", scores, np.array([1]))  # (G, 1, N)
    if ids is not None:
        numbers = np.arange(num_classes, dtype=np.float32)[:, None]
        own = graph.add("Equal", graph.add("Unsqueeze", ids, np.array([1])), numbers)  # (G, C, N)
        by_class = graph.add("Where", own, by_class, LOWEST)
    limits = (np.array([MOST_BOXES]), np.array([overlap], np.float32), np.array([above], np.float32))
    selected = graph.add("NonMaxSuppression", boxes, by_class, *limits)  # (S, 3): group, class, candidate
    places = graph.add("Gather", selected, np.array([0, 2]), axis=1)
    ones = graph.add("Expand", np.array(True), graph.slice(graph.add("Shape", selected), 0, 0, 1))
    nothing = graph.add("Expand", np.array(False), graph.add("Shape", scores))
    return graph.add("ScatterND", nothing, places, ones)


def box_decode(graph: OnnxGraph, node: OperatorNode) -> str:
    """box_decode with constant anchors, corner or centre form; gives corners."""
    node.require("format", "center", "corner")
    data, anchors = node.inputs
    if anchors.value is None or node.get("clip", -1) > 0:
        raise TranslationError("anchors that are not constant, or a limit of the sizes (clip)")
    centres = anchors.value if node.get("format", "center") == "center" else corners_to_centres(anchors.value)
    return decoded(graph, data, centres, tuple(node.get(f"std{k}", 1.0) for k in range(BOX_VALUES)))


def decoded(graph: OnnxGraph, offsets: Tensor | str, anchors: np.ndarray | str, variances: tuple[float, ...]) -> str:
    """Corners (B, N, 4) of offsets (B, N, 4) from anchors in centre form, (1, N, 4) or (B, N, 4)."""
    scaled = graph.add("Mul", offsets, np.array(variances, np.float32))
    offset, growth = graph.slice(scaled, 2, 0, 2), graph.slice(scaled, 2, 2)
    if isinstance(anchors, str):
        centre, sides = graph.slice(anchors, 2, 0, 2), graph.slice(anchors, 2, 2)
        moved = graph.add("Add", graph.add("Mul", offset, sides), centre)
        half = graph.add("Mul", graph.add("Exp", growth), graph.add("Mul", sides, np.array(0.5, np.float32)))
    else:
        moved = graph.add("Add", graph.add("Mul", offset, anchors[..., 2:]), anchors[..., :2])
        half = graph.add("Mul", graph.add("Exp", growth), anchors[..., 2:] * np.float32(0.5))
    return graph.add("Concat", graph.add("Sub", moved, half), graph.add("Add", moved, half), axis=2)


TRANSLATIONS: dict[str, Callable[[OnnxGraph, OperatorNode], str]] = {
    "_contrib_MultiBoxDetection": multibox_detection,
    "_contrib_box_decode": box_decode,
    "_contrib_box_nms": box_nms,
}
