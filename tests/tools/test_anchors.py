"""tools/anchors.py: figures before and after, a preset that train.py reads, a picture."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxes.anchor_fit import best_ssd_iou
from boxes.anchor_sets import MapAnchors, pixel_sizes
from boxes.anchors import AnchorLayer
from common.errors import DataError, OptionError
from config.preset import read_preset
from dataset.letterbox import Resize
from dataset.packing import pack_dataset
from dataset.pascal_voc import PascalVoc
from dataset.record_source import object_boxes
from tests.dataset.voc import add, image_set, xml_object
from tools.anchors import main, plain_ticks, save_picture
from train.options import train_options_class

YOLO = ["--network", "yolov3_tiny", "--data-shape", "96,128"]


@pytest.fixture
def rec(tmp_path):
    """Twelve images of 40 x 30 pixels, with objects of 20 x 10 and 4 x 6 pixels."""
    root = tmp_path / "voc"
    for k in range(12):
        add(root, f"image{k}", xml_object("cat", (1 + k, 1 + k, 20 + k, 10 + k)), xml_object("dog", (2, 3, 5, 8)))
    image_set(root, "trainval", *(f"image{k}" for k in range(12)))
    pack_dataset(PascalVoc(root), tmp_path / "train.lst", seed=None, workers=1)
    return tmp_path / "train.rec"


def test_boxes_follow_the_resize_mode(rec):
    stretched = object_boxes(rec, 20, (60, 40), Resize("force"))
    boxed = object_boxes(rec, 20, (60, 40), Resize("letterbox"))
    assert len(stretched) == 12
    sides = stretched[0][:, 2:] - stretched[0][:, :2]
    assert np.allclose(sides * (40, 60), [[20, 20], [4, 12]], atol=1e-4)
    sides = boxed[0][:, 2:] - boxed[0][:, :2]
    assert np.allclose(sides * (40, 60), [[20, 10], [4, 6]], atol=1e-4)


def test_yolo_anchors_go_into_a_copy_of_the_preset(rec, tmp_path, capsys):
    base = tmp_path / "base.yaml"
    base.write_text("network: yolov3_tiny\ndata_shape: [96, 128]\nbatch_size: 3\nresize_mode: letterbox\n")
    preset, picture = tmp_path / "new" / "fitted.yaml", tmp_path / "new" / "anchors.png"
    main(["--train-path", str(rec), "--preset", str(base), "--output", str(preset), "--picture", str(picture)])
    values = read_preset(train_options_class(), str(preset))
    assert values["batch_size"] == 3
    anchors = np.array(values["yolo_anchors"].split(","), float).reshape(-1, 2)
    assert len(anchors) == 6
    assert np.abs(anchors - [64, 32]).max(axis=1).min() < 4  # 20 x 10 pixels, enlarged 3.2 times
    assert cv2.imread(str(picture)).std() > 0
    printed = capsys.readouterr().out
    before, after = (float(line.split()[-1]) for line in printed.splitlines()[2:4])
    assert after > before
    assert "24 objects in 12 images, input 96,128 (letterbox), 6 anchors" in printed


def test_the_same_seed_writes_the_same_preset(rec, tmp_path):
    paths = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for path in paths:
        main(["--train-path", str(rec), *YOLO, "--generations", "20", "--output", str(path)])
    first, second = (read_preset(train_options_class(), str(path)) for path in paths)
    assert first == second


def test_ssd_sizes_and_ratios_build_a_network(rec, tmp_path, capsys):
    from symbol.symbol_factory import get_assigner

    preset = tmp_path / "ssd.yaml"
    main(["--train-path", str(rec), "--preset", "shapes", "--generations", "50", "--output", str(preset)])
    values = read_preset(train_options_class(), str(preset))
    shape = {"width": values["width"], "taps": values["taps"], "extra_filters": values["extra_filters"]}
    anchors = {name: values[name] for name in ("anchor_sizes", "anchor_ratios")}
    assert get_assigner("mobilenet", 160, 2, **shape, **anchors) is not None
    assert "at their places" in capsys.readouterr().out


LAYERS = (AnchorLayer((0.2, 0.3), (1.0, 2.0)), AnchorLayer((0.5,), (1.0, 3.0, 0.4), step=(0.4, 0.3), offset=(0.5, 0.4)))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000))
def test_overlaps_are_those_of_the_placed_anchors(seed):
    """Of each map the nearest cell alone is looked at, which gives the overlap with all boxes of MultiBoxPrior."""
    low, high = np.sort(np.random.default_rng(seed).uniform(0, 1, (2, 20, 2)), axis=0)
    boxes = np.concatenate([low, high], axis=1)
    family = MapAnchors((48, 64), 0.5, LAYERS, ((6, 8), (2, 3)), "sizes", "ratios")
    sizes = pixel_sizes(boxes, family.size) / family.size[0]
    layers = [(layer.sizes, layer.ratios) for layer in LAYERS]
    found = best_ssd_iou(sizes, layers, family._places(boxes))
    np.testing.assert_allclose(found, family.placed_iou(boxes), atol=1e-5)


def test_fitted_ssd_anchors_are_where_the_cells_are():
    """Objects of an eighth of the image lie between the cells of the coarse map, which suits them by size."""
    low = np.random.default_rng(0).uniform(0.05, 0.8, (200, 2))
    boxes = np.concatenate([low, low + 0.12], axis=1)
    layers = (AnchorLayer((0.05,), (1.0,)), AnchorLayer((0.13,), (1.0,)))
    family = MapAnchors((64, 64), 0.5, layers, ((16, 16), (2, 2)), "sizes", "ratios")
    fitted = family.fit(boxes, 200, 0)
    assert fitted.placed_iou(boxes).mean() > 0.6 > 0.3 > family.placed_iou(boxes).mean()
    assert fitted.fit(boxes, 0, 0) == fitted


def test_a_mistake_names_the_option_or_the_record(rec, tmp_path):
    with pytest.raises(OptionError, match=r"--network resnet: unknown"):
        main(["--train-path", str(rec), "--network", "resnet"])
    with pytest.raises(OptionError, match="data shape 100"):
        main(["--train-path", str(rec), "--network", "yolov3_tiny", "--data-shape", "100"])
    with pytest.raises(DataError, match=r"nowhere\.rec"):
        main(["--train-path", str(tmp_path / "nowhere.rec"), *YOLO])


def test_a_preset_that_cannot_be_written_is_named(rec):
    with pytest.raises(FileNotFoundError) as caught:
        main(["--train-path", str(rec), *YOLO, "--generations", "0", "--output", "/proc/x.yaml"])
    assert caught.value.filename == "/proc/x.yaml"


def test_a_record_without_objects_is_named(tmp_path):
    add(tmp_path / "voc", "empty")
    image_set(tmp_path / "voc", "trainval", "empty")
    pack_dataset(PascalVoc(tmp_path / "voc"), tmp_path / "none.lst", seed=None, workers=1)
    with pytest.raises(OptionError, match=r"none\.rec: has no objects"):
        main(["--train-path", str(tmp_path / "none.rec"), *YOLO])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (9, 450, [10, 20, 50, 100, 200]),
        (1, 100_000, [1, 10, 100, 1000, 10_000, 100_000]),  # 16 would not stand apart
        (60.5, 90.5, [61, 90]),  # none of 1, 2, 5
        (63.2, 63.9, [63, 64]),
    ],
)
def test_the_ticks_of_the_picture_are_few_and_plain(low, high, expected):
    assert plain_ticks(low, high) == expected


def test_objects_and_anchors_stand_out_in_the_picture(tmp_path):
    """Dots of few objects are opaque enough to be seen, and no legend lies upon one."""
    sizes = np.array([[20.0, 30.0], [200.0, 300.0], [60.0, 60.0]])
    save_picture(tmp_path / "a.png", sizes, sizes[:1] * 2, sizes[1:] * 0.8)
    picture = cv2.imread(str(tmp_path / "a.png")).astype(int)
    left = picture[80:, : picture.shape[1] // 2]
    blue, red = left[..., 0] - left[..., 2] > 60, left[..., 2] - left[..., 0] > 60
    assert blue.sum() > 3 * 30
    assert red.sum() > 2 * 60
    assert (left.sum(axis=2) < 60)[:-80, 100:].sum() > 60, "the cross"
