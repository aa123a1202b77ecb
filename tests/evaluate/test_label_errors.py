"""Likely label errors: planted ones are found and come back from the files of all formats."""

import json

import numpy as np
import pytest

from dataset.coco_file import read_annotations
from evaluate.detections import ImageResult, Results
from evaluate.error_types import judge
from evaluate.label_errors import CLASS, DOUBTFUL, MISSING, OFF, find_suspects, suspect_files, suspects_json
from tests.evaluate.test_error_types import NAMES, SIZE, one_image

A, B = [10, 10, 30, 30], [60, 60, 80, 80]
HALF = [0.5] * 3


def suspects_of(truth, found):
    return find_suspects(judge(one_image(truth, found)), HALF)


@pytest.mark.parametrize(
    ("truth", "found", "kind", "doubt"),
    [
        ([[0, *A]], [[0, 0.9, *A], [1, 0.8, *B]], MISSING, 0.8),
        ([[0, *A]], [[1, 0.8, *A]], CLASS, 0.8),
        ([[0, *A]], [[1, 0.8, *A], [0, 0.6, *A]], CLASS, 0.8),
        ([[0, *A]], [[0, 0.8, 10, 10, 30, 18]], OFF, 0.8),
        ([[0, *A], [0, *B]], [[0, 0.9, *A]], DOUBTFUL, 0.5),
        ([[0, *A], [0, *B]], [[0, 0.9, *A], [2, 0.01, 60, 60, 80, 64]], DOUBTFUL, 0.5 * 0.8),
    ],
)
def test_what_contradicts_the_annotation_is_found(truth, found, kind, doubt):
    (one,) = suspects_of(truth, found)
    assert (one.kind, one.doubt) == (kind, pytest.approx(doubt))


@pytest.mark.parametrize(
    ("truth", "found"),
    [
        ([[0, *A]], [[0, 0.9, *A], [1, 0.49, *B]]),  # not sure
        ([[0, *A]], [[1, 0.8, *A], [0, 0.85, *A]]),  # its own class is surer
        ([[0, *A]], [[0, 0.9, *A], [1, 0.8, 10, 10, 30, 24]]),  # another class, not quite there
        ([[0, *A]], [[0, 0.9, *A], [0, 0.8, 10, 10, 30, 18]]),  # the object is found well
        ([[0, *A], [1, *B, 1]], [[0, 0.9, *A], [1, 0.8, *B]]),  # a difficult object
    ],
)
def test_what_does_not_is_not(truth, found):
    assert suspects_of(truth, found) == []


def test_of_several_detections_in_one_place_the_best_is_told():
    found = [[0, 0.9, *A], [1, 0.8, *B], [2, 0.7, 60, 60, 80, 78], [1, 0.75, 90, 60, 99, 80]]
    suspects = suspects_of([[0, *A]], found)
    assert [(one.kind, one.doubt, one.id) for one in suspects] == [(MISSING, 0.8, 1), (MISSING, 0.75, 1)]


@pytest.fixture
def suspects():
    rows = [[[0, *A, 0]], [[1, *B, 0]]]
    found = [[[0, 0.9, *A], [1, 0.8, *B]], [[0, 0.7, *B]]]
    images = [
        ImageResult(f"{k}/x.jpg", SIZE, np.array(truth, float), np.array(some, float), k)
        for k, (truth, some) in enumerate(zip(rows, found, strict=True))
    ]
    results = Results(NAMES, tuple(images))
    return find_suspects(judge(results), HALF), results


def test_the_list_names_image_kind_and_both_boxes(suspects):
    first, second = suspects_json(*suspects)
    assert first == {
        "image": "0/x.jpg", "image_id": 0, "kind": MISSING, "doubt": 0.8, "class": "b", "box": B,
        "annotated_class": None, "annotated_box": None,
    }  # fmt: skip
    assert (second["kind"], second["class"], second["annotated_class"]) == (CLASS, "a", "b")


def test_the_files_have_the_suspects_with_their_scores(suspects, tmp_path):
    files = dict(suspect_files(*suspects, "coco"))
    path = tmp_path / "a.json"
    path.write_bytes(files["annotations/instances_train.json"])
    assert [image.file_name for image in read_annotations(path).images] == ["0_x.jpg", "1_x.jpg"]
    told = json.loads(path.read_text())["annotations"]
    assert [(one["bbox"], one["score"]) for one in told] == [([60, 60, 20, 20], 0.8), ([60, 60, 20, 20], 0.7)]
    voc = dict(suspect_files(*suspects, "voc"))
    assert b"<name>b</name>" in voc["Annotations/0_x.xml"]
    assert b"<score>0.8</score>" in voc["Annotations/0_x.xml"]
    yolo = dict(suspect_files(*suspects, "yolo"))
    assert yolo["labels/train/1_x.txt"].split()[0] == b"0"
