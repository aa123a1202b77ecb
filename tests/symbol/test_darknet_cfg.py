"""Darknet's .cfg files: round trip, what is refused, and a network from one."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from symbol.darknet_cfg import MAX_CFG_BYTES, CfgInput, cfg_input, format_cfg, load_cfg, parse_cfg
from symbol.darknet_sections import (
    AvgPool,
    Convolutional,
    Dropout,
    MaxPool,
    Route,
    Sam,
    ScaleChannels,
    Shortcut,
    Yolo,
    layer_names,
    with_classes,
    with_width,
)
from symbol.detector.yolo import ROWS as YOLO_NETWORKS
from symbol.symbol_factory import embedded_options, get_symbol, get_symbol_train
from tests.symbol.network_cases import YOLOS

CFG = """
[net]
# as Darknet's own files begin
batch=64
width=96 ; pixels
height=64
channels=3
steps=400000,450000

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
filters = 21
size=1
stride=1
pad=1
activation=linear

[yolo]
mask = 0,1,2
anchors = 10,14,  23,27,  37.5,58
classes=2
num=3
jitter=.3
ignore_thresh = .7
"""


@YOLOS
@pytest.mark.parametrize("width", [1.0, 0.3])
def test_what_is_written_is_read_back(network: str, width: float) -> None:
    sections = with_classes(with_width(YOLO_NETWORKS[network].sections, width), 7)
    assert parse_cfg(format_cfg(sections, (320, 416)), "here") == sections


def test_a_file_is_read_as_darknet_reads_it() -> None:
    sections = parse_cfg(CFG, "here")
    assert layer_names(sections) == ["body_0", "body_1", "pred_2", "head_3"]
    assert sections[-1] == Yolo((0, 1, 2), ((10, 14), (23, 27), (37.5, 58)), 2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("num=3", "num=3\nmax=200\niou_loss=ciou\niou_thresh=.213\niou_normalizer=.07\ncls_normalizer=1"),
        ("num=3", "num=3\ncounters_per_class=100,50\nrandom=1\ntruth_thresh=1\nscale_x_y=1.0\nnew_coords=0"),
        ("channels=3", "channels=3\nmosaic=1\npolicy=poly\npower=4\ngamma=.1\nmax_ratio=2\naspect=.75\nadam=1\nB1=.9"),
        (
            "channels=3",
            "channels=3\nletter_box=1\ncutmix=1\nmixup=0\nlabel_smooth_eps=.1\nmax_chart_loss=9\nema_alpha=0",
        ),
        ("stride=2\npad=1", "stride=2\npadding=1"),
        ("stride=2\npad=1", "stride=2\npad=1\npadding=5"),
        ("stride=1\npad=1", "stride=1\npadding=0"),
        ("num=3", "num=3\nnms_kind=greedynms\nbeta_nms=0.6\nstopbackward=1"),
        ("stride=2\npad=1", "stride=2\npad=1\nstopbackward=1\nonlyforward=1"),
        ("batch=64", "batch=64\nbatch=1"),
        ("size=3", "size=3\nsize=3"),
        ("size=2\nstride=2", "stride=2"),
        ("mask = 0,1,2", ""),
        ("num=3", ""),
    ],
)
def test_what_does_not_change_the_network_has_no_effect(old: str, new: str) -> None:
    assert old in CFG
    assert parse_cfg(CFG.replace(old, new, 1), "here") == parse_cfg(CFG, "here")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[maxpool]", "[lstm]", r"line 18, \[lstm\]: not built \(there are convolutional, "),
        ("size=2", "size=2\npadding=2", r"\[maxpool\]: padding=2: expected 1 to 1"),
        ("size=2", "size=2\nsize=3", "line 20: size is given twice"),
        ("size=2", "size=two", r"\[maxpool\]: size='two': expected a whole number"),
        ("size=2", "size=2\nantialiasing=1", r"\[maxpool\]: key 'antialiasing' is not built, so that this"),
        ("size=2", "size=99999999999999999999", "expected a whole number"),
        ("size=2", "what is this", "line 19, 'what is this': expected"),
        ("filters=8", "filters=0", "filters=0: expected 1 to"),
        ("filters=8", "filters=60000", "60000 channels"),
        ("activation=leaky", "activation=selu", "activation='selu' is not built"),
        ("size=3", "size=3\ngroups=3", "8 filters cannot be divided into 3 groups"),
        ("size=3", "size=3\ngroups=2", "3 channels cannot be divided into 2 groups"),
        ("size=3", "size=3\nxnor=1", r"\[convolutional\]: key 'xnor' is not built, so that"),
        ("[maxpool]\nsize=2\nstride=2", "[route]\nlayers=0\ngroups=2\ngroup_id=2", "group 2 of 2 cannot be taken of 8"),
        ("[maxpool]\nsize=2\nstride=2", "[sam]\nfrom=1", r"section 1, \[sam\]: refers to section 1, which"),
        ("[maxpool]\nsize=2\nstride=2", "[maxpool]\n[scale_channels]\nfrom=0", "comes after a map; built"),
        ("[maxpool]\nsize=2\nstride=2", "[avgpool]", r"section 3, \[yolo\]: comes after a mean over the whole image"),
        ("[maxpool]\nsize=2\nstride=2", "[avgpool]\n[upsample]", r"section 2, \[upsample\]: comes after a mean over"),
        ("[maxpool]\nsize=2\nstride=2", "[dropout]\nprobability=1", "probability='1': expected a number"),
        ("pad=1\nactivation=leaky", "activation=leaky", "without pad=1"),
        ("pad=1\nactivation=leaky", "padding=2", "without pad=1"),
        ("size=1\nstride=1\npad=1", "size=1\nstride=1\npadding=1", "without pad=1"),
        ("num=3", "num=3\nscale_x_y=wide", "scale_x_y='wide': expected a number from 1 to 4"),
        ("num=3", "num=3\nnew_coords=1", "comes after something else than a logistic convolution"),
        ("activation=linear", "activation=logistic", "comes after something else than a linear convolution"),
        ("channels=3", "channels=1", "channels=1: expected 3 to 3"),
        ("channels=3", "layers=3", r"\[net\]: key 'layers' is not built"),
        ("mask = 0,1,2", "mask = 0,1,3", "mask 0,1,3 does not choose among 3 anchors"),
        ("classes=2", "classes=3", "3 anchors and 3 classes need 24 filters before it, not 21"),
        ("num=3", "num=4", "num=4: expected 1 to 3"),
        ("37.5,58", "37.5", "anchors='10,14,  23,27,  37.5': expected widths and heights"),
        ("37.5,58", "37.5,nan", "expected widths and heights"),
        ("[maxpool]\nsize=2\nstride=2", "[route]\nlayers=-4", r"section 1, \[route\]: refers to section -4, which"),
        ("[maxpool]\nsize=2\nstride=2", "[route]\nlayers=9", "refers to section 9, which does not come before it"),
        ("[maxpool]\nsize=2\nstride=2", "[shortcut]\nfrom=-2", "refers to section -2, which does not come before it"),
        ("[maxpool]\nsize=2\nstride=2", "[upsample]\nstride=4", "makes a map larger than the image"),
        ("[maxpool]\nsize=2\nstride=2", "[yolo]", "anchors='': expected widths and heights"),
        ("[net]", "[other]", r"does not begin with \[net\]"),
        (CFG, "", r"does not begin with \[net\]"),
        (CFG, "[net]\n", "has 0 sections"),
        (CFG, "[net]\n[maxpool]\nsize=2\nstride=2", r"has no \[yolo\] section"),
        (CFG, "[net]\n" + "[upsample]\nstride=1\n" * 1001, "has 1001 sections"),
    ],
)  # fmt: skip
def test_what_is_not_built_is_named(old: str, new: str, message: str) -> None:
    assert old in CFG
    with pytest.raises(DataError, match=message) as caught:
        parse_cfg(CFG.replace(old, new, 1), "my.cfg")
    assert str(caught.value).startswith("my.cfg: ")


EVERYTHING = (
    Convolutional(8, 3, 2, activation="mish"),
    Convolutional(8, 3, groups=8, activation="relu6"),
    Dropout(0.25),
    Shortcut(-3, "leaky"),
    Route((-1,), 2, 1),
    AvgPool(),
    Convolutional(4, 1, batch_normalize=False, activation="logistic"),
    ScaleChannels(-3),
    Sam(-4),
    MaxPool(4, 2),
    Convolutional(7, 1, 1, False, "logistic"),
    Yolo((1,), ((10.0, 14.0), (23.0, 27.5)), 2, 1.05, True),
)


def test_every_section_is_written_and_read_back() -> None:
    assert parse_cfg(format_cfg(EVERYTHING, (64, 64)), "here") == EVERYTHING


def test_predictions_whose_sigmoid_is_the_decoders_are_read_by_nothing_else() -> None:
    sections = (*EVERYTHING, Route((-2,)))
    with pytest.raises(DataError, match=r"section 12, \[route\]: reads predictions of section 10"):
        parse_cfg(format_cfg(sections, (64, 64)), "here")


def test_depthwise_convolutions_stay_so_at_other_widths() -> None:
    assert with_width(EVERYTHING, 2.0)[1] == Convolutional(16, 3, groups=16, activation="relu6")


@pytest.mark.parametrize(
    ("more", "letterbox"),
    [("", True), ("letter_box=0", False), ("mosaic=1\nletter_box=1", True), ("mosaic=1", False)],
)
def test_the_input_is_that_of_the_file(more: str, letterbox: bool) -> None:
    """pjreddie's Darknet keeps proportions, AlexeyAB's, which alone has some keys, does not unless it is told to."""
    assert cfg_input(CFG.replace("channels=3", f"channels=3\n{more}"), "here") == CfgInput((64, 96), letterbox)
    assert cfg_input(CFG.replace("height=64", ""), "here").size is None
    assert not cfg_input(CFG.replace("num=3", "num=3\nscale_x_y=1"), "here").letterbox
    assert not cfg_input(CFG.replace("activation=leaky", "activation=mish"), "here").letterbox


def test_comments_are_of_any_encoding_and_a_mark_of_the_byte_order_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "net.cfg"
    path.write_bytes(b"\xef\xbb\xbf" + CFG.replace("as Darknet", "\u7f51\u7edc").lstrip().encode("gbk"))
    assert parse_cfg(load_cfg(path), "here") == parse_cfg(CFG, "here")


def test_a_network_beyond_memory_is_refused() -> None:
    layer = "[convolutional]\nfilters=16384\nsize=31\npad=1\n"
    with pytest.raises(DataError, match="weights; at most"):
        parse_cfg(CFG.replace("[maxpool]", f"{layer * 2}[maxpool]"), "here")


WORDS = [
    "[net]",
    "[yolo]",
    "[route]",
    "[shortcut]",
    "layers=-1",
    "from=-3",
    "size=3",
    "mask=0",
    "anchors=1,1",
    "=",
    "#",
    "[",
]


@given(st.lists(st.sampled_from([*CFG.splitlines(), *WORDS]) | st.text(max_size=8), max_size=40))
def test_any_text_is_read_or_refused_by_a_sentence(lines: list[str]) -> None:
    with suppress(DataError):
        parse_cfg("\n".join(lines), "here")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe\x00", "is not text"), (b"#" * (MAX_CFG_BYTES + 1), "larger than"), (None, "cannot be read")],
)
def test_a_file_that_is_no_cfg_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "net.cfg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"net.cfg: .*{message}|net.cfg: {message}"):
        load_cfg(path)


def test_a_cfg_is_a_network(tmp_path: Path) -> None:
    """For the classes of the data, whatever number the file has; later its text serves in place of the file."""
    path = tmp_path / "net.cfg"
    path.write_text(format_cfg(YOLO_NETWORKS["yolov3_spp_mini"].sections, (64, 64)))
    network = f"darknet:{path}"
    for door in (get_symbol, get_symbol_train):
        assert door(network, 64, 3).tojson() == door("yolov3_spp_mini", 64, 3).tojson()
    carried = embedded_options(network, {})
    path.unlink()
    assert embedded_options(network, carried) == {}
    assert get_symbol(network, 64, 3, **carried).tojson() == get_symbol("yolov3_spp_mini", 64, 3).tojson()
    with pytest.raises(DataError, match="cannot be read"):
        get_symbol(network, 64, 3)
    assert embedded_options("mobilenet", {}) == {}
