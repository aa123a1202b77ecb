"""Charts of a data set: they say what the objects are, and extremes break none of them."""

import numpy as np
import pytest

from drawing.figures import svg_of
from drawing.set_charts import MOST_CLASSES, MOST_LETTERS, Objects, plain_name, reach_chart, set_charts


def objects_of(boxes, ids=None, image=None, size=(100, 50)):
    boxes = np.array(boxes, float).reshape(-1, 4)
    count = len(boxes)
    ids = np.zeros(count, int) if ids is None else np.array(ids)
    image = np.zeros(count, int) if image is None else np.array(image)
    return Objects(ids, image, boxes, np.array([size] * (int(image.max(initial=0)) + 1)))


def text_of(charts, name):
    return next(chart.text for chart in charts if chart.name == name)


def test_the_sentences_are_true():
    boxes = [[0, 0, 10, 10], [0, 0, 100, 50], [20, 10, 60, 50]]
    charts = set_charts(objects_of(boxes, [0, 2, 2], [0, 0, 1]), ("a", "b", "c"))
    assert text_of(charts, "classes") == "Objects: 3, classes that occur: 2 of 3."
    assert text_of(charts, "per_image") == "Median 1.5, most 2, images without objects: 0."
    assert text_of(charts, "sizes").startswith("Small (below 32 x 32) 33%, medium 67%, large")
    assert text_of(charts, "sides").startswith("Median: 40.0% of the image's width, 80.0% of its height.")
    assert text_of(charts, "proportions").startswith("Median 1.00;")


@pytest.mark.parametrize(
    ("boxes", "size"),
    [
        ([[0, 0, 1, 1]], (1, 1)),
        ([[0, 0, 0, 0]], (100, 50)),
        ([[-1e30, -1e30, 1e30, 1e30], [5, 5, 3, 2]], (100, 50)),
        ([[0, 0, 60000, 1]], (60000, 1000)),
        ([[0, 0, 1, 1]] * 500, (100, 50)),
    ],
)
def test_extremes_can_be_drawn(boxes, size):
    charts = set_charts(objects_of(boxes, size=size), ("$a$", "\udcff<b>"))
    assert len(charts) == 6
    assert all("<b>" not in svg_of(chart.figure) for chart in charts)


def test_of_many_classes_the_most_frequent_are_drawn():
    count = MOST_CLASSES + 5
    ids = np.repeat(np.arange(count), np.arange(count) + 1)
    charts = set_charts(objects_of(np.tile([0, 0, 9, 9], (len(ids), 1)), ids), [f"class {k}" for k in range(count)])
    svg = svg_of(charts[0].figure)
    assert f"class {count - 1}<" in svg
    assert "class 4<" not in svg
    assert text_of(charts, "classes").endswith(f"The {MOST_CLASSES} most frequent are shown.")


def test_without_objects_there_is_no_chart():
    assert set_charts(objects_of([]), ("a",)) == []


def test_the_share_that_anchors_reach_is_that_of_each_size():
    sides = np.array([[4, 4], [20, 20], [20, 20], [300, 300]], float)
    chart = reach_chart(sides, np.array([0.1, 0.5, 0.4, 0.9]), 0.5, "net")
    heights = [bar.get_height() for bar in chart.figure.axes[0].patches]
    assert heights == [0, 0, 50, 0, 0, 0, 100]
    assert chart.text.startswith(
        "net: the best anchor of 50.0% of 4 objects has an IoU of 0.5 or more with it; mean 0.4"
    )


def test_long_names_are_shortened():
    assert plain_name("a" * 30) == "a" * (MOST_LETTERS - 1) + "…"
    assert plain_name("\udcff") == "?"
