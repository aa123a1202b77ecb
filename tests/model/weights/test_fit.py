"""The three-way report: loaded, missing, unused."""

import numpy as np

from model.weights.fit import compare, expected_shapes


def test_every_parameter_stands_in_one_place():
    wanted = {"a": (2,), "b": (3,), "c": (4, 1)}
    report = compare(wanted, {"x": np.zeros(1), "c": np.zeros((4, 2)), "a": np.zeros(2)})
    assert (report.loaded, report.missing, report.unused) == (("a",), ("b", "c"), ("x",))
    assert report.misfits == {"c": ((4, 2), (4, 1))}
    assert str(report).splitlines() == [
        "loaded (1): a",
        "missing (2): b, c (shape (4, 2) in the file, (4, 1) in the network)",
        "unused (1): x",
    ]


def test_expected_shapes_are_those_of_the_parameters_alone():
    for targets in ("paper", "mxnet"):
        arg, aux = expected_shapes("mobilenet", 300, 2, width=0.25, targets=targets)
        assert not {"data", "label", "cls_target", "loc_target", "normaliser"} & arg.keys()
        assert arg["conv_1_conv2d_weight"] == (8, 3, 3, 3)
        assert aux["conv_14_batchnorm_moving_var"] == (256,)
