"""The report: a page that stands alone, whose numbers are those of other ways to them, and which works by keyboard."""

import json
import re
import time

import numpy as np
import pytest

from common.errors import DataError
from dataset.writers import FORMATS
from drawing.report_charts import MOST_CELLS
from evaluate.coco_metric import coco_eval
from evaluate.detections import ImageResult, Results, coco_rows, measure
from evaluate.error_types import TYPES, judge
from evaluate.options import LABEL_FORMATS
from evaluate.report import (
    MOST_PICTURES,
    picture_weights,
    record_pictures,
    set_pictures,
    worst_pictures,
    write_report,
)
from evaluate.sets import SetOptions
from tests.chromium import NARROW, run_in_page
from tests.dataset.voc import CAT, add, image_set, jpeg
from tests.evaluate.test_error_types import NAMES, SIZE, made_up, plain_confusion, plain_costs
from tests.tools.test_check_dataset import BOX, write_record

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">"
INTERVALS = {"voc": {"mAP": (0.1, 0.2), "a": (0.3, 0.4), "b": (np.nan, np.nan)}, "coco": {"AP": (0.5, 0.6)}}


def no_picture(number):
    raise DataError(f"record {number} is damaged")


def report(folder, results, pictures=None, **words):
    """(text of the page, {name: JSON in it}, numbers)."""
    picture = jpeg(SIZE[1], SIZE[0])
    path = write_report(folder, "a model", results, pictures or (lambda number: picture), **words)
    text = path.read_text("utf-8")
    found = {name: json.loads(re.search(rf'id="{name}">(.*?)</script>', text)[1]) for name in ("data", "thumbnails")}
    return text, found, json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def results():
    return made_up(5, images=30)


@pytest.fixture(scope="module")
def written(tmp_path_factory, results):
    folder = tmp_path_factory.mktemp("report")
    return folder, *report(folder, results, label_errors="voc", intervals=INTERVALS)


def test_the_numbers_are_those_of_other_ways_to_them(written, results):
    numbers = written[3]
    known = measure(results, ("voc", "voc07", "coco"))
    assert (numbers["mAP"], numbers["mAP_voc07"]) == (known["voc"].mean_ap, known["voc07"].mean_ap)
    assert numbers["coco"]["AP"] == known["coco"].stats["AP"]
    for k, name in enumerate(NAMES):
        row, own = numbers["classes"][name], results.truths[results.truths[:, 1] == k]
        assert (row["objects"], row["AP"]) == (len(own), known["voc"].classes[k].ap)
        some = results.detections[results.detections[:, 1] == k]
        alone = coco_eval(*coco_rows(some, own), NAMES).stats  # of the rows of the class alone
        got = [row[size] for size in ("COCO AP", "small", "medium", "large")]
        wanted = [alone[stat] for stat in ("AP", "APs", "APm", "APl")]
        np.testing.assert_allclose([np.nan if one is None else one for one in got], wanted)
    thresholds = [numbers["classes"][name]["score"] for name in NAMES]
    np.testing.assert_array_equal(numbers["confusions"], plain_confusion(results, thresholds))
    ap, fixed, counts = plain_costs(results)
    assert numbers["errors"]["counts"] == counts
    assert numbers["errors"]["lost"] == pytest.approx({name: max(value - ap, 0) for name, value in fixed.items()})


def test_the_page_stands_alone_with_pictures_and_charts_beside_it(written):
    folder, text, found, _ = written
    assert not re.search(r"(src|href)=.https?:", text)
    names = {file.name for file in folder.glob("*.png")}
    charts = ("ap", "precision_recall", "f1", "score", "confusion", "errors", "calibration")
    assert names == {f"{name}.png" for name in charts}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in folder.glob("*.png"))
    assert text.count("<svg") == len(charts)
    assert len(found["data"]["images"]) == len(found["thumbnails"]) == 30
    assert all(text.count(f"{ends} to") == 1 for ends in ("0.100", "0.300", "0.500"))


def test_label_errors_are_listed_and_written(written):
    folder, _, found, numbers = written
    listed = json.loads((folder / "label-errors.json").read_text())
    assert sum(numbers["label_errors"].values()) == len(listed) > 0
    doubts = [one["doubt"] for one in listed]
    assert doubts == sorted(doubts, reverse=True)
    assert [one["doubt"] for one in found["data"]["suspects"]] == doubts[: len(found["data"]["suspects"])]
    assert {file.suffix for file in (folder / "label-errors" / "Annotations").iterdir()} == {".xml"}
    assert set(LABEL_FORMATS) == set(FORMATS)


def test_the_worst_pictures_have_the_most_errors(results):
    judged = judge(results, [0.5] * 3)
    weights = picture_weights(judged, 30)
    for k in range(30):
        rows = judged.detections[:, 0] == k
        for t in range(len(TYPES) - 1):
            assert weights[k, t] == pytest.approx(judged.scores[rows & (judged.kind == t)].sum())
    assert weights[:, -1].sum() == judged.counts()["missed"]
    many = np.random.default_rng(0).random((3 * MOST_PICTURES, len(TYPES)))
    worst = worst_pictures(many)
    assert len(set(worst)) == len(worst) == MOST_PICTURES
    assert worst[0] == many.sum(axis=1).argmax()
    assert set(many.argmax(axis=0)) <= set(worst)


def test_damaged_pictures_and_strange_names_do_no_harm(tmp_path):
    some = made_up(1, images=3, names=(HOSTILE, "$x", "_y"))
    images = [ImageResult(HOSTILE, one.size, one.truth, one.found, one.id) for one in some.images]
    text, found, _ = report(tmp_path, Results(some.class_names, tuple(images)), no_picture)
    assert found["thumbnails"] == [""] * 3
    assert sorted(image["reason"] for image in found["data"]["images"]) == [f"record {k} is damaged" for k in range(3)]
    assert "<img" not in text
    assert text.count("<script") == text.count("</script") == 3


def test_pictures_are_those_of_the_set_that_was_evaluated(tmp_path):
    add(tmp_path / "voc", "a", CAT)
    add(tmp_path / "voc", "b", CAT, image=jpeg(50, 60), width=50, height=60)
    image_set(tmp_path / "voc", "trainval", "b", "a")
    names = ("JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg")
    images = [ImageResult(name, SIZE, np.zeros((0, 6)), np.zeros((0, 6)), k) for k, name in enumerate(names)]
    picture = set_pictures(SetOptions(rec_path=str(tmp_path / "voc")), Results(("cat",), tuple(images)))
    assert [picture(k) for k in (0, 1)] == [(tmp_path / "voc" / name).read_bytes() for name in names[:2]]
    with pytest.raises(DataError, match="no picture JPEGImages/c.jpg"):
        picture(2)
    content = jpeg(50, 60)
    record = write_record(tmp_path / "a.rec", [[BOX], [BOX]], image=content, names=("cat",))
    picture = record_pictures(record, Results(("cat",), tuple(images)))
    assert picture(0) == content
    with pytest.raises(DataError, match="no record 2"):
        picture(2)


def test_nothing_to_find_or_nothing_found_is_reported(tmp_path):
    empty = Results(NAMES, (ImageResult("x.jpg", SIZE, np.zeros((0, 6)), np.zeros((0, 6))),))
    _, _, numbers = report(tmp_path, empty)
    assert (numbers["mAP"], numbers["errors"]["AP"], numbers["objects"]) == (None, None, 0)


def test_of_eighty_classes_the_most_confused_are_listed(tmp_path):
    names = tuple(f"class {k}" for k in range(MOST_CELLS + 1))
    text, _, _ = report(tmp_path, made_up(2, images=40, names=names))
    assert not (tmp_path / "confusion.png").exists()
    assert "Classes that are confused most" in text


def test_a_folder_that_cannot_be_made_is_told(tmp_path, results):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file.*cannot be written"):
        report(tmp_path / "file", results)


STEPS = """
const byId = (id) => document.getElementById(id), seen = {};
const pick = (id, value) => { byId(id).value = value; byId(id).dispatchEvent(new Event("change")); };
const note = (name) => { seen[name] = [byId("status").textContent, byId("grid").children.length]; };
note("all"); byId("next").click(); note("second page"); byId("back").click();
pick("type", "4"); note("background"); pick("type", "");
press("ArrowRight", document.body); press("ArrowRight"); press("Enter");
seen.open = [byId("viewer").open, byId("where").textContent, byId("pair").querySelectorAll("svg").length];
press("ArrowRight"); seen.third = byId("where").textContent;
press("Escape"); seen.closed = byId("viewer").open;
seen.doubts = byId("doubts").children.length;
pick("kind", "missing label?"); seen.missing = [byId("doubts").children.length, byId("counted").textContent];
document.querySelector("#doubts .tile").click(); seen.doubt = byId("told").textContent; byId("viewer").close();
seen.title = document.title;
return seen;
"""


def test_pictures_and_doubts_work_in_a_browser(written):
    folder, _, found, numbers = written
    seen = run_in_page(folder / "index.html", STEPS)
    images = found["data"]["images"]
    order = sorted(range(30), key=lambda k: -sum(images[k]["weights"]))
    assert seen["all"] == ["30 pictures", 24]
    assert seen["second page"] == ["30 pictures", 6]
    background = sum(image["weights"][TYPES.index("background")] > 0 for image in images)
    assert seen["background"][0] == f"{background} pictures"
    assert seen["open"] == [True, images[order[1]]["name"], 2]
    assert (seen["third"], seen["closed"]) == (images[order[2]]["name"], False)
    suspects = found["data"]["suspects"]
    assert seen["doubts"] == len(suspects)
    assert seen["missing"][0] == sum(one["kind"] == "missing label?" for one in suspects)
    assert seen["doubt"].startswith("missing label? ")


def test_nothing_is_wider_than_a_telephone(written):
    script = """
    const widths = [[document.documentElement.scrollWidth, innerWidth]];
    document.querySelector(".tile").click();
    const dialog = document.getElementById("viewer");
    return [...widths, [dialog.scrollWidth, dialog.clientWidth]];
    """
    for content, room in run_in_page(written[0] / "index.html", script, NARROW):
        assert content <= room


@pytest.mark.slow
def test_five_thousand_images_are_reported_within_a_minute(tmp_path):
    """Prints the time; it may be twice the goal of 60 s, as other work may go on."""
    rng = np.random.default_rng(0)
    some = [made_up(k, images=1, boxes=16, names=tuple("abcdefghij")).images[0] for k in range(50)]
    images = []
    for k in range(5000):
        one, extra = some[k % 50], np.zeros((100, 6))
        low = rng.uniform(0, 80, (100, 2))
        extra[:] = np.column_stack(
            [rng.integers(0, 10, 100), rng.random(100) * 0.5, low, low + rng.uniform(5, 40, (100, 2))]
        )
        extra[: len(one.found)] = one.found[:100]
        images.append(ImageResult(f"{k}.jpg", SIZE, one.truth, extra, k))
    begin = time.monotonic()
    _, found, numbers = report(tmp_path, Results(tuple("abcdefghij"), tuple(images)))
    seconds, size = time.monotonic() - begin, (tmp_path / "index.html").stat().st_size / 1e6
    print(f"{numbers['detections']} detections in {seconds:.1f} s, {size:.1f} MB")
    assert len(found["thumbnails"]) >= MOST_PICTURES
    assert (seconds < 120, size < 8) == (True, True)
