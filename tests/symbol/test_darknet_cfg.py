"""Darknet's .cfg files: round trip, what is refused, and a network from one."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from symbol.darknet_cfg import MAX_CFG_BYTES, format_cfg, load_cfg, parse_cfg
from symbol.darknet_sections import Yolo, layer_names, with_classes, with_width
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
    ],
)
def test_what_does_not_change_the_network_has_no_effect(old: str, new: str) -> None:
    assert old in CFG
    assert parse_cfg(CFG.replace(old, new, 1), "here") == parse_cfg(CFG, "here")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[maxpool]", "[lstm]", r"line 18, \[lstm\]: not built \(there are convolutional, "),
        ("size=2", "size=2\npadding=1", r"\[maxpool\]: key 'padding' is not built; remove it"),
        ("size=2", "size=2\nsize=3", "line 20: size is given twice"),
        ("size=2", "size=two", r"\[maxpool\]: size='two': expected a whole number"),
        ("size=2", "size=4", r"section 1, \[maxpool\]: size 4 with stride 2 is not built"),
        ("size=2", "size=99999999999999999999", "expected a whole number"),
        ("size=2", "what is this", "line 19, 'what is this': expected"),
        ("filters=8", "filters=0", "filters=0: expected 1 to"),
        ("filters=8", "filters=60000", "60000 channels"),
        ("activation=leaky", "activation=mish", "activation='mish' is not built"),
        ("pad=1\nactivation=leaky", "activation=leaky", "without pad=1"),
        ("pad=1\nactivation=leaky", "padding=2", "without pad=1"),
        ("size=1\nstride=1\npad=1", "size=1\nstride=1\npadding=1", "without pad=1"),
        ("num=3", "num=3\nscale_x_y=1.05", r"scale_x_y='1.05' is not built \(there is 1\)"),
        ("num=3", "num=3\nscale_x_y=wide", "scale_x_y='wide' is not built"),
        ("num=3", "num=3\nnew_coords=1", r"new_coords='1' is not built \(there is 0\)"),
        ("channels=3", "channels=1", "channels=1: expected 3 to 3"),
        ("channels=3", "layers=3", r"\[net\]: key 'layers' is not built"),
        ("mask = 0,1,2", "mask = 0,1,3", "mask 0,1,3 does not choose among 3 anchors"),
        ("classes=2", "classes=3", "3 anchors and 3 classes need 24 filters before it, not 21"),
        ("num=3", "num=4", "num=4: expected 3 to 3"),
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
    embedded = embedded_options(network, {})
    path.unlink()
    assert embedded_options(network, embedded) == {}
    assert get_symbol(network, 64, 3, **embedded).tojson() == get_symbol("yolov3_spp_mini", 64, 3).tojson()
    with pytest.raises(DataError, match="cannot be read"):
        get_symbol(network, 64, 3)
    assert embedded_options("mobilenet", {}) == {}
