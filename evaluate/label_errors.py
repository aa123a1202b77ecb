"""Likely mistakes of the annotations: where a detector that is right elsewhere contradicts them, the surest first.

They are to be looked at by a person: a detector's own mistakes look the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from dataset.imdb import AnnotatedImage
from dataset.writers import FORMATS, check_class_names, flat_names, safe_name
from evaluate.detections import Results
from evaluate.error_types import BACKGROUND, CLASSIFICATION, LOCALISATION, Judged, overlaps

MISSING, CLASS, DOUBTFUL, OFF = "missing label?", "other class?", "doubtful box?", "box off?"
KINDS = (MISSING, CLASS, DOUBTFUL, OFF)
LEAST_SCORE = 0.5  # of a detection that contradicts an annotation; nor is it below the threshold of its class
CLASS_IOU = 0.75  # from which two boxes are of one object
FOUND_IOU = 0.3  # below it no detection has found an object, from it on its box may be off
MOST = 500  # of a kind
_NONE = -1


@dataclass(frozen=True)
class Suspect:
    """One likely mistake.

    Attributes:
        image: number of the image in the results.
        kind: of KINDS.
        doubt: 0 to 1, how sure it is.
        id, box: class and corners (4,) in pixels that the annotation should perhaps have; of a doubtful box those it
            has.
        annotated_id, annotated_box: those that it has; -1 and () for a missing label.
    """

    image: int
    kind: str
    doubt: float
    id: int
    box: tuple[float, ...]
    annotated_id: int = _NONE
    annotated_box: tuple[float, ...] = ()


def find_suspects(judged: Judged, thresholds: Sequence[float] | np.ndarray) -> list[Suspect]:
    """The likely mistakes, the surest first.

    judged: all detections, whatever their score; thresholds: (K,) scores from which a detection of a class is believed,
    LEAST_SCORE at least. The doubt of a detection is its score. An object that nothing finds is as doubtful as its
    class is well found: the share of its objects that have a detection with IoU >= FOUND_IOU, times 1 - the best IoU.
    """
    found = [*_missing(judged, thresholds), *_other_class(judged, thresholds), *_off(judged, thresholds)]
    return sorted([*found, *_doubtful(judged)], key=lambda one: (-one.doubt, one.image))


def _sure(judged: Judged, thresholds: Sequence[float] | np.ndarray, kind: int) -> np.ndarray:
    """The numbers of detections with this error and a high score."""
    least = np.maximum(np.asarray(thresholds, np.float64)[judged.ids], LEAST_SCORE)
    return np.flatnonzero((judged.kind == kind) & (judged.scores >= least))


def _missing(judged: Judged, thresholds: Sequence[float] | np.ndarray) -> Iterator[Suspect]:
    """Detections beside all objects, difficult ones as well; of several in one place the best."""
    rows = _sure(judged, thresholds, BACKGROUND)
    rows = rows[judged.pairs.best(len(judged.kind))[0][rows] <= FOUND_IOU]
    own = judged.detections[rows]
    near = overlaps(own, own[:, [0, 1, 3, 4, 5, 6, 2]])  # of detections with one another
    better = own[near.truth, 2] > own[near.detection, 2]
    beaten = np.unique(near.detection[better & (near.iou >= FOUND_IOU)])
    for row in _surest(judged, np.delete(rows, beaten)):
        yield _suspect(judged, row, MISSING)


def _other_class(judged: Judged, thresholds: Sequence[float] | np.ndarray) -> Iterator[Suspect]:
    """The best detection of another class on an object, unless one of its own class has at least its score."""
    own = np.full(len(judged.truths), -np.inf)
    right = judged.owner >= 0
    own[judged.owner[right]] = judged.scores[right]
    rows = _sure(judged, thresholds, CLASSIFICATION)
    rows = rows[(_target_iou(judged)[rows] >= CLASS_IOU) & (judged.scores[rows] > own[judged.target[rows]])]
    for row in _best_of_target(judged, rows):
        yield _suspect(judged, row, CLASS)


def _off(judged: Judged, thresholds: Sequence[float] | np.ndarray) -> Iterator[Suspect]:
    """The best detection of an object's class that overlaps it a little, where none overlaps it well."""
    rows = _sure(judged, thresholds, LOCALISATION)
    rows = rows[(_target_iou(judged)[rows] >= FOUND_IOU) & ~judged.found[judged.target[rows]]]
    for row in _best_of_target(judged, rows):
        yield _suspect(judged, row, OFF)


def _target_iou(judged: Judged) -> np.ndarray:
    """(n,) the IoU of each detection with its target, 0 without."""
    iou, pairs = np.zeros(len(judged.kind)), judged.pairs
    own = pairs.truth == judged.target[pairs.detection]
    iou[pairs.detection[own]] = pairs.iou[own]
    return iou


def _surest(judged: Judged, rows: np.ndarray) -> list[int]:
    return rows[np.argsort(-judged.scores[rows], kind="stable")][:MOST].tolist()


def _best_of_target(judged: Judged, rows: np.ndarray) -> list[int]:
    """The best of the detections of each target."""
    rows = rows[np.argsort(-judged.scores[rows], kind="stable")]
    return _surest(judged, rows[np.unique(judged.target[rows], return_index=True)[1]])


def _doubtful(judged: Judged) -> Iterator[Suspect]:
    """Objects that no detection of any class and score overlaps."""
    best = np.zeros(len(judged.truths))
    np.maximum.at(best, judged.pairs.truth, judged.pairs.iou)
    wanted, hit = judged.truths[:, 6] == 0, best >= FOUND_IOU
    total, reached = (np.bincount(judged.truth_ids[some], minlength=judged.classes) for some in (wanted, wanted & hit))
    share = reached / np.maximum(total, 1)
    doubt = share[judged.truth_ids] * (1 - best)
    rows = np.flatnonzero(wanted & ~hit)
    for row in rows[np.argsort(-doubt[rows], kind="stable")][:MOST].tolist():
        id_, box = int(judged.truth_ids[row]), tuple(judged.truths[row, 2:6].tolist())
        yield Suspect(int(judged.truths[row, 0]), DOUBTFUL, float(doubt[row]), id_, box, id_, box)


def _suspect(judged: Judged, row: int, kind: str) -> Suspect:
    """A detection that contradicts what is annotated."""
    image, id_, score, *box = judged.detections[row].tolist()
    target = int(judged.target[row])
    annotated: tuple[int, tuple[float, ...]] = (_NONE, ())
    if target >= 0:
        annotated = int(judged.truth_ids[target]), tuple(judged.truths[target, 2:6].tolist())
    wanted = annotated[1] if kind == CLASS else tuple(box)
    return Suspect(int(image), kind, score, int(id_), wanted, *annotated)


def suspects_json(suspects: Sequence[Suspect], results: Results) -> list[dict[str, Any]]:
    """What label-errors.json lists, the surest first; boxes are corners in pixels."""
    names = [*results.class_names, None]
    return [
        {
            "image": results.images[one.image].name,
            "image_id": results.images[one.image].id,
            "kind": one.kind,
            "doubt": round(one.doubt, 4),
            "class": names[one.id],
            "box": list(one.box),
            "annotated_class": names[one.annotated_id],
            "annotated_box": list(one.annotated_box) or None,
        }
        for one in suspects
    ]


def suspect_files(suspects: Sequence[Suspect], results: Results, kind: str) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the suspects as annotations of a format of dataset.writers.FORMATS, with doubts as scores.

    An image stands in it with the name of its picture, without folders; where two have the same, with its number too.
    DataError for a class name that the format cannot hold.
    """
    check_class_names(results.class_names, coco=kind == "coco")
    own: dict[int, list[Suspect]] = {}
    for one in suspects:
        own.setdefault(one.image, []).append(one)
    names = _file_names([results.images[k].name for k in own])
    images = [
        AnnotatedImage(name, Path(name), _rows(some), results.images[k].size, scores=np.array([s.doubt for s in some]))
        for (k, some), name in zip(own.items(), names, strict=True)
    ]
    return FORMATS[kind].annotations({"": images}, results.class_names, 1)


def _rows(suspects: Sequence[Suspect]) -> np.ndarray:
    """Objects (n, 6)."""
    return np.array([[one.id, *one.box, 0] for one in suspects], np.float64)


def _file_names(paths: Sequence[str]) -> list[str]:
    """A name for each picture in one folder."""
    names, taken = [], set()
    for number, flat in enumerate(flat_names(paths), 1):
        stem, suffix = safe_name(flat)
        stem = f"{stem}_{number}" if stem in taken else stem
        if stem in taken:
            raise DataError(f"{paths[number - 1]}: pictures of the set have names that cannot be told apart")
        taken.add(stem)
        names.append(f"{stem}{suffix}")
    return names
