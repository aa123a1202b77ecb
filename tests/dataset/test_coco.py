"""COCO annotations: ids, boxes, crowds, where images lie, and files that are damaged or hostile."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError
from dataset.coco import Coco
from tests.dataset.coco import CATEGORIES, annotation, content, image, write_set


def test_ids_boxes_and_crowds(tmp_path):
    """Class ids follow the category ids; a picture without annotations has no objects."""
    boxes = [
        annotation(7, 90, [1, 2, 3, 4]),
        annotation(5, 1, [0.5, 0, 10, 10], crowd=1),
        annotation(7, 18, [0, 0, 9, 9]),
    ]
    write_set(tmp_path, "train2017", content([image(7), image(5), image(6)], boxes))
    coco = Coco(tmp_path)
    assert coco.class_names == ("person", "dog", "toothbrush")
    assert [one.name for one in coco.images] == [f"train2017/{k:012d}.jpg" for k in (7, 5, 6)]
    np.testing.assert_array_equal(coco.images[0].objects, [[2, 1, 2, 4, 6, 0], [1, 0, 0, 9, 9, 0]])
    np.testing.assert_array_equal(coco.images[1].objects, [[0, 0.5, 0, 10.5, 10, 1]])
    assert coco.images[2].objects.shape == (0, 6)
    assert coco.images[0].size == (30, 40)


def test_boxes_without_area_are_dropped_and_listed(tmp_path):
    boxes = [annotation(1, 1, [3, 3, 0, 5]), annotation(1, 1, [3, 3, 2, 5])]
    write_set(tmp_path, "train2017", content([image(1)], boxes))
    coco = Coco(tmp_path)
    assert len(coco.images[0].objects) == 1
    assert coco.dropped == ["train2017/000000000001.jpg: object 1 [3 3 0 5] has no area"]


def test_sets_of_2014_share_the_images_of_val2014(tmp_path):
    name = "COCO_val2014_{:012d}.jpg"
    write_set(tmp_path, "train2014", content([image(1, "COCO_train2014_000000000001.jpg")], []))
    for number, part in ((2, "valminusminival2014"), (3, "minival2014")):
        write_set(tmp_path, part, content([image(number, name.format(number))], []), "val2014")
    coco = Coco(tmp_path, ("train2014", "valminusminival2014"))
    names = [one.path.relative_to(tmp_path).as_posix() for one in coco.images]
    assert names == ["train2014/COCO_train2014_000000000001.jpg", "val2014/COCO_val2014_000000000002.jpg"]
    assert all(one.path.is_file() for one in coco.images)


@pytest.mark.parametrize("folder", ["images/train2017", "images", "train2017"])
def test_where_images_lie(tmp_path, folder):
    write_set(tmp_path, "train2017", content([image(1)], []), folder)
    assert Coco(tmp_path).images[0].name == f"{folder}/000000000001.jpg"


def test_an_image_of_two_sets_counts_once(tmp_path):
    for name in ("a", "b"):
        write_set(tmp_path, name, content([image(1)], []), "images")
    assert len(Coco(tmp_path, ("a", "b")).images) == 1


def test_images_that_earlier_sets_have_are_counted(tmp_path, caplog):
    write_set(tmp_path, "a", content([image(1)], []), "images")
    write_set(tmp_path, "b", content([image(1), image(2)], []), "images")
    assert len(Coco(tmp_path, ("a", "b")).images) == 2
    assert "b: 1 of its images are in an earlier set, too, and count once" in caplog.text


def test_entries_for_one_file_are_one_image(tmp_path):
    boxes = [annotation(1, 1, [0, 0, 2, 2]), annotation(2, 18, [1, 1, 0, 3]), annotation(2, 18, [1, 1, 3, 3])]
    write_set(tmp_path, "train2017", content([image(1, "a.jpg"), image(2, "a.jpg")], boxes))
    (one,) = Coco(tmp_path).images
    np.testing.assert_array_equal(one.objects, [[0, 0, 0, 2, 2, 0], [1, 1, 1, 4, 4, 0]])
    assert one.dropped == ("train2017/a.jpg: object 2 [1 1 0 3] has no area",)
    other = {**image(2, "a.jpg"), "height": 31}
    write_set(tmp_path, "train2017", content([image(1, "a.jpg"), other], boxes))
    with pytest.raises(DataError, match="set train2017: a.jpg is there with two sizes"):
        Coco(tmp_path)


def test_class_names_decide_the_ids(tmp_path):
    write_set(tmp_path, "train2017", content([image(1)], [annotation(1, 18, [1, 1, 2, 2])]))
    assert Coco(tmp_path, class_names=("cat", "dog")).images[0].objects[0, 0] == 1
    with pytest.raises(DataError, match=r"instances_train2017.json: category 'dog' .* \(did you mean dig\?\)"):
        Coco(tmp_path, class_names=("cat", "dig"))


def test_sets_that_disagree_about_a_category(tmp_path):
    write_set(tmp_path, "a", content([image(1)], []))
    write_set(tmp_path, "b", content([image(2)], [], [{"id": 18, "name": "cat"}]))
    with pytest.raises(DataError, match="category 18 is 'cat', in another set it is 'dog'"):
        Coco(tmp_path, ("a", "b"))


ONE = [image(1)]
HOSTILE = {
    "no JSON": ("{", "not readable as JSON"),
    "nested too deeply": ("[" * 200_000, "not readable as JSON"),
    "a number with too many digits": ('{"images": ' + "9" * 10_000 + "}", "not readable as JSON"),
    "NaN": ('{"images": [NaN]}', "NaN is not JSON"),
    "a list": ("[]", "not a COCO annotation file"),
    "a results file": ('[{"image_id": 1}]', "not a COCO annotation file"),
    "no images": ({"annotations": [], "categories": []}, "'images' is not a list"),
    "an image that is a number": (content([1], []), "'images' is not a list of objects"),
    "no file name": (content([{"id": 1}], []), "file_name None"),
    "a newline in a name": (content([image(1, "a\nb.jpg")], []), "has the file_name"),
    "a NUL in a name": (content([image(1, "a\0.jpg")], []), "has the file_name"),
    "a path upwards": (content([image(1, "../../secret.jpg")], []), "lies outside"),
    "an absolute path": (content([image(1, "/etc/passwd")], []), "lies outside"),
    "an id that is a text": (content([{**image(1), "id": "1"}], []), "has the id '1', not a whole number"),
    "an id that is huge": (content([{**image(1), "id": 1 << 70}], []), "not a whole number"),
    "an image twice": (content([image(1), image(1)], []), "the image id 1 is there more than once"),
    "a category twice": (content(ONE, [], [CATEGORIES[0]] * 2), "the category id 18 is there more than once"),
    "a name twice": (content(ONE, [], [{"id": k, "name": "dog"} for k in (1, 2)]), "category name 'dog' is there more"),
    "a category without name": (content(ONE, [], [{"id": 1}]), "a category has the name None"),
    "an unknown image": (content(ONE, [annotation(2, 1, [0, 0, 1, 1])]), "annotation 1 has the image_id 2"),
    "an unknown category": (content(ONE, [annotation(1, 2, [0, 0, 1, 1])]), "annotation 1 has the category_id 2"),
    "three numbers": (content(ONE, [annotation(1, 1, [0, 0, 1])]), r"annotation 1 has the bbox \[0, 0, 1\]"),
    "no box": (content(ONE, [{"image_id": 1, "category_id": 1}]), "annotation 1 has the bbox None"),
    "a box of texts": (content(ONE, [annotation(1, 1, ["0", 0, 1, 1])]), "not four numbers"),
    "an infinite box": (content(ONE, [annotation(1, 1, [0, 0, 1, 1])]), "not four numbers"),
    "a strange crowd": (content(ONE, [annotation(1, 1, [0, 0, 1, 1], crowd=2)]), "has iscrowd 2"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_damaged_and_hostile_files_are_refused_with_a_sentence(tmp_path, case):
    what, message = HOSTILE[case]
    path = write_set(tmp_path / "root", "train2017", what)
    if case == "an infinite box":
        path.write_text(json.dumps(what).replace("[0, 0, 1, 1]", "[0, 0, 1e999, 1]"))
    with pytest.raises(DataError, match=message) as caught:
        Coco(tmp_path / "root")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_id_of_several_images_leaves_these_out_and_an_entry_there_twice_counts_once(tmp_path):
    boxes = [annotation(number, 18, [0, 0, 9 + number, 9]) for number in (1, 2, 3)]
    images = [image(1, "a.jpg"), image(2, "b.jpg"), image(1, "c.jpg"), image(2, "b.jpg"), image(3, "d.jpg")]
    write_set(tmp_path / "root", "train2017", content(images, boxes))
    with pytest.raises(
        DataError, match=r"cannot be used: 2 .*--skip-bad.* id 1 is there.* of a\.jpg and c\.jpg.* id 2 is"
    ):
        Coco(tmp_path / "root")
    read = Coco(tmp_path / "root", skip_bad=True)
    assert [(one.name, one.objects[:, 3].tolist()) for one in read.images] == [
        ("train2017/b.jpg", [11]),
        ("train2017/d.jpg", [12]),
    ]
    assert len(read.bad) == 2


def test_a_link_out_of_the_root(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"x")
    root = tmp_path / "root"
    write_set(root, "train2017", content([image(1)], []))
    link = root / "train2017" / "000000000001.jpg"
    link.unlink()
    link.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DataError, match="lies outside"):
        Coco(root)


@pytest.mark.parametrize(
    ("root", "sets", "message"),
    [
        ("nowhere", (), "no such folder"),
        (".", ("val2017",), r"instances_val2017.json is missing; sets that are there \(--set\): train2017"),
        (".", ("../x",), "lies outside"),
    ],
)
def test_what_is_not_there(tmp_path, root, sets, message):
    write_set(tmp_path, "train2017", content([image(1)], []))
    with pytest.raises(DataError, match=message):
        Coco(Path(tmp_path / root), sets)
