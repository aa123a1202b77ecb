"""Letterbox: pixels, borders, and boxes mapped back, as the YOLOv3-SPP trainer has them."""

import numpy as np
import pytest

from dataset.augment import LINEAR
from dataset.letterbox import Frame, fitting_scale, letterbox
from dataset.transforms import resize, shape_of, to_image
from tests.golden.loader import assert_close, assert_outputs, cases


@pytest.mark.parametrize("case", cases("yolo_letterbox"), ids=str)
def test_letterbox(case):
    """scale_fill is our resize mode `force`; the fill is grey, as all cases have it."""
    args, image = case.args, case["img"]
    shape, size = shape_of(image), tuple(args["new_shape"])
    assert len(set(args["color"])) == 1
    if args["scale_fill"]:
        frame, scales = Frame(size, size), [size[1] / shape[1], size[0] / shape[0]]
    else:
        auto = args["pad_multiple_when_auto"] if args["auto"] else 0
        frame = letterbox(shape, size, scale_up=args["scale_up"], auto=auto)
        scales = [fitting_scale(shape, size, args["scale_up"])] * 2
    half_padding = [(frame.size[axis] - frame.inner[axis]) / 2 for axis in (1, 0)]
    pixels = frame.surround(resize(image, frame.inner, LINEAR), args["color"][0])
    assert_outputs(case, {"out": pixels, "ratio_pad": [*scales, *half_padding]})


@pytest.mark.parametrize("case", cases("yolo_scale_coords"), ids=str)
def test_scale_coords(case):
    """Under the original's scale and padding, which differ from the applied ones, the way back is the same.

    Its scale is that of the longer sides, which need not be the limiting ones, and its padding is not rounded.
    """
    ours, image = case.args["img1_hw"], case.args["img0_hw"]
    scale, padding = max(ours) / max(image), None
    if case.args["ratio_pad"]:
        (scale, _), padding = case.args["ratio_pad"]
    left, top = padding or [(ours[axis] - image[axis] * scale) / 2 for axis in (1, 0)]
    assert_close(case, "out", to_image(case["boxes"], np.array([*image, scale, scale, top, left])))
