"""Caffe models: the published layer names fill vgg16_reduced, and no damage does more than one CheckpointError."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import CheckpointError
from model.weights import caffe, vgg
from model.weights.fit import compare, expected_shapes
from tests.model.weights.formula import blob, caffemodel, counted, formula, sized, varint

SOURCES = ("conv4_3_norm", "fc7", "conv6_2", "conv7_2", "conv8_2", "conv9_2")
OURS = ("relu4_3", "relu7", *(f"multi_feat_{k}_conv_3x3_relu" for k in range(2, 6)))
EXTRAS = {
    f"conv{k + 4}_{j}": f"multi_feat_{k}_conv_{s}" for k in range(2, 6) for j, s in ((1, "1x1_conv"), (2, "3x3_conv"))
}
SMALL = {"conv1_1": [formula("w", (64, 3, 3, 3)), formula("b", (64,))], "fc8": [formula("f", (3, 4))]}


def written(tmp_path, content):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content)
    return path


def ssd_layers(shapes):
    """{Caffe's layer: (our layer, blobs)} of SSD300, by the names of its published prototxt."""
    pairs = {name: name for name in (*vgg.CONVOLUTIONS, "fc6", "fc7")} | EXTRAS
    for theirs, ours in zip(SOURCES, OURS, strict=True):
        pairs |= {f"{theirs}_mbox_loc": f"{ours}_loc_pred_conv", f"{theirs}_mbox_conf": f"{ours}_cls_pred_conv"}
    layers = {
        theirs: [formula(f"{theirs}/{kind}", shapes[f"{ours}_{kind}"]) for kind in ("weight", "bias")]
        for theirs, ours in pairs.items()
    }
    layers["conv4_3_norm"] = [formula("scale", (64,))]
    return pairs, layers


def test_an_ssd300_fills_every_parameter_of_the_network(tmp_path):
    shapes, _ = expected_shapes("vgg16_reduced", 300, 3)
    # Large layers are cut down: their names are what is tested here.
    wanted = {name: tuple(min(side, 64) for side in shape) for name, shape in shapes.items()}
    pairs, layers = ssd_layers(wanted)
    arg, aux = caffe.rename(caffe.read(written(tmp_path, caffemodel(layers))), "vgg16_reduced", {})
    report = compare(wanted, arg)
    assert set(report.loaded) == set(wanted)
    assert (report.missing, report.unused, aux) == ((), (), {})
    for theirs, ours in pairs.items():
        if theirs != "conv1_1":
            np.testing.assert_array_equal(arg[f"{ours}_weight"], layers[theirs][0])
        np.testing.assert_array_equal(arg[f"{ours}_bias"], layers[theirs][1])
    np.testing.assert_array_equal(arg["relu4_3_scale"][0, :, 0, 0], layers["conv4_3_norm"][0])


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_both_layer_formats_and_both_shape_formats_are_read(tmp_path, old, double):
    found = caffe.read(written(tmp_path, caffemodel(SMALL, old, double)))
    assert found.keys() == {"conv1_1[0]", "conv1_1[1]", "fc8[0]"}
    np.testing.assert_array_equal(found["conv1_1[0]"], SMALL["conv1_1"][0])
    assert found["conv1_1[1]"].shape == ((1, 1, 1, 64) if old else (64,))
    arg, _ = caffe.rename(found, "vgg16_reduced", {})
    np.testing.assert_array_equal(arg["conv1_1_bias"], SMALL["conv1_1"][1])


def test_the_first_convolution_reads_rgb_instead_of_bgr_and_unknown_layers_keep_their_names(tmp_path):
    arg, _ = caffe.rename(caffe.read(written(tmp_path, caffemodel(SMALL))), "vgg16_reduced", {})
    np.testing.assert_array_equal(arg["conv1_1_weight"][:, 0], SMALL["conv1_1"][0][:, 2])
    np.testing.assert_array_equal(arg["conv1_1_weight"][:, 1], SMALL["conv1_1"][0][:, 1])
    assert "fc8[0]" in arg


def test_sides_need_not_be_packed_and_other_fields_are_skipped(tmp_path):
    values = formula("x", (2, 3))
    shape = sized(7, counted(1, 2) + counted(1, 3))
    loose = varint(12 << 3 | 5) + bytes(4) + varint(13 << 3 | 1) + bytes(8)
    layer = sized(1, b"a") + sized(7, shape + sized(5, values.tobytes()[:8]) + sized(5, values.tobytes()[8:])) + loose
    np.testing.assert_array_equal(caffe.read(written(tmp_path, sized(100, layer)))["a[0]"], values)


def test_full_vgg_is_subsampled_to_the_reduced_one(monkeypatch):
    monkeypatch.setattr(vgg, "FC6_SHAPE", (8, 2, 7, 7))
    monkeypatch.setattr(vgg, "FC7_SHAPE", (8, 8, 1, 1))
    full = {
        "conv1_1[0]": SMALL["conv1_1"][0],
        "fc6[0]": formula("fc6", (1, 1, 8, 98)),
        "fc6[1]": formula("fc6b", (1, 1, 1, 8)),
        "fc7[0]": formula("fc7", (8, 8)),
        "fc7[1]": formula("fc7b", (8,)),
    }
    arg, _ = caffe.rename(full, "vgg16_reduced", {})
    fc6 = full["fc6[0]"].reshape(8, 2, 7, 7)
    assert arg["fc6_weight"].shape == (2, 2, 3, 3)
    assert arg["fc6_weight"][1, 1, 2, 1] == fc6[4, 1, 6, 3]
    np.testing.assert_array_equal(arg["fc6_bias"], full["fc6[1]"].ravel()[[0, 4]])
    np.testing.assert_array_equal(arg["fc7_weight"][..., 0, 0], full["fc7[0]"][::4, ::4])
    np.testing.assert_array_equal(arg["fc7_bias"], full["fc7[1]"][[0, 4]])


def test_legacy_networks_get_their_own_names():
    arrays = {f"{name}[0]": formula(name, (64, 3, 3, 3)) for name in ("conv1_1", "fc6", "conv10_2", "conv6_2_mbox_loc")}
    arg, _ = caffe.rename(arrays, "legacy_vgg16_ssd_512", {})
    assert arg.keys() == {"conv1_1_weight", "conv6_weight", "conv12_2_weight", "relu8_2_loc_pred_conv_weight"}


@pytest.mark.parametrize(
    ("arrays", "network", "reason"),
    [
        ({"conv1_1[0]": np.zeros((64, 3, 3, 3))}, "mobilenet", "use --network vgg16_reduced, not mobilenet"),
        ({"conv1[0]": np.zeros((64, 3, 7, 7))}, "vgg16_reduced", "no layer conv1_1"),
        ({"conv0[0]": np.zeros(5), "conv1/dw[0]": np.zeros(5)}, "vgg16_reduced", "of a MobileNet of Caffe, as that of"),
        ({"conv0[0]": np.zeros(5), "conv1/dw[0]": np.zeros(5)}, "mobilenet", "of a MobileNet of Caffe, as that of"),
        ({"conv1_1[0]": np.zeros((64, 1, 3, 3))}, "vgg16_reduced", "shape"),
        ({"conv1_1[0]": np.zeros(5)}, "vgg16_reduced", "shape"),
    ],
)
def test_models_that_are_not_understood_are_refused(arrays, network, reason):
    with pytest.raises(CheckpointError, match=reason):
        caffe.rename(arrays, network, {})


def prior_box(edges, *ratios, more=b""):
    """A PriorBoxParameter of numbers of 32 bits, packed or not."""
    low, high = (sized(number, struct.pack("<f", edge)) for number, edge in enumerate(edges, 1))
    return low + high + b"".join(varint(3 << 3 | 5) + struct.pack("<f", ratio) for ratio in ratios) + more


STEP_8 = varint(10 << 3 | 5) + struct.pack("<f", 8)


def test_priors_are_those_of_the_file(tmp_path):
    layer = sized(1, b"a_mbox_priorbox") + sized(203, prior_box((30, 60), 2, 3, more=STEP_8))
    found = caffe.read(written(tmp_path, sized(100, layer)))
    np.testing.assert_allclose(found["a_mbox_priorbox[priors]"], [30, 60, 0, 8, 1, 2, 0.5, 3, 1 / 3], rtol=1e-6)
    plain = sized(1, b"a") + sized(7, blob(np.ones(1))) + sized(203, prior_box((30, 60), 2))  # no step
    assert caffe.read(written(tmp_path, sized(100, plain))).keys() == {"a[0]"}


def heads(classes, **priors):
    """Biases of the six maps' scores, and priors in pixels."""
    arrays = {f"{name}_mbox_conf[1]": np.zeros(4 * classes) for name in SOURCES}
    few, many = [1, 2, 0.5], [1, 2, 0.5, 3, 1 / 3]
    edges = (33, 60, 111, 162, 213, 264, 315)
    for k, (name, step) in enumerate(zip(SOURCES, (8, 16, 32, 64, 100, 300), strict=True)):
        numbers = dict(zip(("low", "high", "clip", "step"), (*edges[k : k + 2], 0, step), strict=True)) | priors
        arrays[f"{name}_mbox_priorbox[priors]"] = np.array([*numbers.values(), *(many if 0 < k < 4 else few)])
    return arrays


def test_a_whole_ssd_is_described_by_its_priors_and_its_classes():
    found = caffe.describe(heads(21))
    assert (found.network, found.side, found.note) == ("vgg16_reduced", 300, "")
    assert found.options["anchor_sizes"].startswith("0.11,0.14832397;0.2,")
    bare = {name: array for name, array in heads(81).items() if "prior" not in name}
    found = caffe.describe(bare)
    assert found.options["anchor_sizes"].startswith("0.07,0.102")  # COCO's: 21 and 45 pixels
    assert "ssd_coco.py are taken" in found.note
    assert caffe.describe({"conv1_1[0]": np.zeros(3)}) is None
    for changed, message in (({"step": 7}, "steps 7, 7, .* not read"), ({"clip": 1}, "priors .* are clipped")):
        with pytest.raises(CheckpointError, match=message):
            caffe.describe(heads(21, **changed))


HUGE = sized(7, sized(1, varint(1 << 40)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no weights"),
        (b"\x0a", "cut off inside a number"),
        (varint(100 << 3 | 2) + varint(1 << 60), "cut off, or a length is damaged"),
        (b"\xff" * 11, "more than ten bytes"),
        (varint(100 << 3 | 3), "wire type 3"),
        (counted(100, 5), "a number where a message"),
        (sized(100, sized(7, HUGE + sized(5, bytes(8)))), "has 2 values"),
        (sized(100, sized(7, sized(5, bytes(7)))), "sound"),
        (sized(100, sized(7, sized(7, sized(1, b"\x00")))), "has 0 values"),
        (sized(100, sized(7, sized(7, counted(1, 1) * 33) + sized(5, bytes(4)))), "shape"),
        (sized(100, sized(1, b"\xff") + sized(7, blob(np.ones(1)))), "utf-8"),
        (sized(100, sized(1, b"a") + sized(7, blob(np.ones(1)))) * 2, "twice"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, reason):
    path = written(tmp_path, content)
    with pytest.raises(CheckpointError, match=reason) as error:
        caffe.read(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        caffe.read(tmp_path / "none.caffemodel")


SOUND = caffemodel({"conv1_1": [formula("w", (2, 3, 1, 1)), formula("b", (2,))]})


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(SOUND)))
def test_mutations_give_arrays_no_larger_than_the_file_or_one_error(tmp_path_factory, changes, end):
    content = bytearray(SOUND)
    for place, byte in changes:
        content[place] = byte
    path = written(tmp_path_factory.getbasetemp(), bytes(content[:end]))
    try:
        arrays = caffe.read(path)
        assert sum(array.nbytes for array in arrays.values()) <= end
        caffe.rename(arrays, "vgg16_reduced", {})
    except CheckpointError:
        pass
