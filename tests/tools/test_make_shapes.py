"""The synthetic data set: tight boxes, reproducible, packable."""

import cv2
import numpy as np
import pytest

from common.errors import DataError
from dataset.packing import pack_dataset
from dataset.pascal_voc import PascalVoc
from tools.make_shapes import HUE_SPREAD, SHAPES, draw_image, main


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    main(["--output", str(root), "--train", "60", "--test", "10", "--size", "160", "--seed", "3"])
    return root


def test_it_packs_and_trains_as_any_voc_folder(shapes, tmp_path):
    voc = PascalVoc(shapes)
    assert voc.class_names == ("circle", "square", "star", "triangle")
    report = pack_dataset(voc, tmp_path / "t.lst", seed=0, workers=1)
    assert len(report.counts) == 60
    assert 0 < report.counts.count(0) < 20
    assert (report.objects_per_class > 10).all()
    assert not report.dropped
    assert not report.scaled
    assert len(PascalVoc(shapes, image_sets=["test"]).images) == 10


def test_objects_are_large_enough_and_some_are_difficult(shapes):
    objects = np.concatenate([image.objects for image in PascalVoc(shapes).images])
    sides = objects[:, 3:5] - objects[:, 1:3]
    assert sides.min() >= 0.09 * 160
    assert sides.max() <= 0.61 * 160
    assert 0 < objects[:, 5].mean() < 0.15


def test_boxes_are_tight_around_the_visible_colour():
    for k in range(40):
        _, objects = draw_image(np.random.default_rng(k), 128)
        for drawn in objects:
            xmin, ymin, xmax, ymax = drawn.box()
            inside = drawn.visible[ymin - 1 : ymax, xmin - 1 : xmax]
            assert inside.sum() == drawn.visible.sum()
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_pixels_in_the_box_have_the_hue_of_the_class():
    hues = {shape.name: shape.hue for shape in SHAPES}  # OpenCV's, 0 to 179
    for k in range(40):
        image, objects = draw_image(np.random.default_rng(k), 128)
        for drawn in objects:
            hue = cv2.cvtColor(image[drawn.visible][None], cv2.COLOR_BGR2HSV)[0, :, 0]
            away = np.abs((hue.astype(int) - hues[drawn.name] + 90) % 180 - 90)
            assert np.median(away) <= HUE_SPREAD + 1


def test_seed_decides_and_an_image_does_not_depend_on_the_number(shapes, tmp_path):
    for seed, same in ((3, True), (4, False)):
        root = tmp_path / str(seed)
        main(["--output", str(root), "--train", "5", "--test", "2", "--size", "160", "--seed", str(seed)])
        for name in ("trainval_00004.jpg", "test_00001.jpg"):
            path = "JPEGImages/" + name
            assert ((root / path).read_bytes() == (shapes / path).read_bytes()) == same


def test_unwritable_output_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--output"):
        main(["--output", str(tmp_path / "file"), "--train", "1", "--test", "1"])
