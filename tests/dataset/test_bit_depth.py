"""More than 8 bits: one rule maps them wherever they are read, and without one they are refused by name."""

import ast
import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.errors import DataError, OptionError
from dataset import image_check, transforms
from dataset.batch_spec import BatchSpec
from dataset.image_check import packed_image
from dataset.iterator import open_batches
from dataset.labels import pack_label
from dataset.recordio import RecordReader, RecordWriter, pack
from dataset.sidecar import read_sidecar
from dataset.transforms import checked_bit_depth, decode, eight_bits, parse_bit_depth
from engines.preprocess import read_image
from machine.opencv import cv2
from tests.dataset.layouts import write
from tests.dataset.voc import CAT, DOG, add, image_set, jpeg
from tools import im2rec
from tools.prepare_dataset import main

RULES = ("window:0,4080", "window:-3.5,1900", "percentile:1,99", "percentile:0,100")
EXAMPLES = Path(__file__).parents[2] / "examples"
RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 4096, (30, 40)).astype(np.uint16)
COLOUR = RNG.integers(0, 4096, (30, 40, 3)).astype(np.uint16)
ALPHA = np.dstack([COLOUR, RNG.integers(0, 65536, (30, 40)).astype(np.uint16)])
EIGHT = RNG.integers(0, 256, (30, 40, 3)).astype(np.uint8)
SETS = {
    kind: RNG.normal(1500, 300, (7, 9, 3)).astype(kind)
    for kind in (np.uint16, ">u2", np.int16, np.int32, np.uint32, np.float16, np.float32, np.float64)
}


def coded(pixels, suffix=".png", options=()):
    """Pixels, BGR, as OpenCV writes them."""
    done, content = cv2.imencode(suffix, pixels, options)
    assert done
    return content.tobytes()


def saved(pixels, kind, mode=None, **options):
    """Pixels, RGB, as Pillow writes them."""
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def one_by_one(pixels, rule):
    """The same as eight_bits, for one value after the other."""
    kind, low, high = parse_bit_depth(rule)
    values = sorted(float(value) for value in pixels.ravel())
    if kind == "percentile":
        low, high = (values[max(0, int(np.ceil(len(values) * share / 100)) - 1)] for share in (low, high))
    scaled = [(float(value) - low) * (255 / (high - low)) for value in pixels.ravel()]
    return np.array([min(255, max(0, round(value))) for value in scaled]).reshape(pixels.shape)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pixels", SETS.values(), ids=map(str, SETS))
def test_the_map_is_that_of_each_value(pixels, rule):
    found = eight_bits(pixels, rule)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, one_by_one(pixels, rule))
    assert len(np.unique(found)) > 20


@pytest.mark.parametrize("script", ["detect_mxnet.py", "detect_onnxruntime.py"])
@pytest.mark.parametrize("rule", RULES)
def test_the_examples_map_alike(script, rule):
    tree = ast.parse((EXAMPLES / script).read_text("utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    functions = {"np": np}
    exec(compile(tree, script, "exec"), functions)
    for pixels in (*SETS.values(), GREY, COLOUR):
        np.testing.assert_array_equal(functions["eight_bits"](pixels, rule), eight_bits(pixels, rule))


@pytest.mark.parametrize(
    ("deep", "rule"),
    [
        (np.arange(256) * 16, "window:0,4080"),
        (np.arange(256) * 257, "window:0,65535"),
        (np.arange(256) * 16 + 100, "window:100,4180"),
        (np.arange(256) * 16, "percentile:0,100"),
    ],
)
def test_8_bits_that_were_spread_come_back(deep, rule):
    for kind in (np.uint16, np.int32, np.float32):
        np.testing.assert_array_equal(
            eight_bits(deep.astype(kind).reshape(16, 16), rule), np.arange(256).reshape(16, 16)
        )


def test_values_are_rounded_to_the_nearest_and_clipped():
    pixels = np.array([[-9, 0, 1, 2, 3, 5, 509, 510, 511, 9000]], np.int16)
    np.testing.assert_array_equal(eight_bits(pixels, "window:0,510"), [[0, 0, 0, 1, 2, 2, 254, 255, 255, 255]])


def test_strips_and_tables_are_the_same(monkeypatch):
    monkeypatch.setattr(transforms, "_STRIP", 7)
    for rule in RULES:
        np.testing.assert_array_equal(eight_bits(COLOUR.astype(np.float64), rule), eight_bits(COLOUR, rule))


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=60), st.integers(0, 49), st.integers(51, 100))
def test_a_percentile_leaves_what_it_has_mapped(values, low, high):
    rule = f"percentile:{low},{high}"
    once = eight_bits(np.array([values], np.uint16), rule)
    np.testing.assert_array_equal(eight_bits(once, rule), once)


def test_an_image_of_nearly_one_value_is_mapped_to_two():
    pixels = np.full((9, 9), 700, np.uint16)
    pixels[0, 0] = 900
    found = eight_bits(pixels, "percentile:1,98")
    assert found[0, 0] == 255
    assert not found[1:].any()


def test_percentiles_are_of_the_image_s_own_pixels():
    for factor in (1, 7):
        np.testing.assert_array_equal(
            eight_bits(GREY * np.uint16(factor), "percentile:5,95"), eight_bits(GREY, "percentile:5,95")
        )


@pytest.mark.parametrize(
    "rule",
    ["", "window", "window:1", "window:5,5", "window:9,1", "window:0,nan", "window:0,inf", "window:0,1e13",
     "window:1,2,3", "percentile:-1,50", "percentile:0,101", "percentile:5,5", "12", "Window:0,1", "window:a,b"],
)  # fmt: skip
def test_what_is_no_rule_is_refused(rule):
    with pytest.raises(ValueError, match="expected window:LOW,HIGH"):
        parse_bit_depth(rule)
    if rule:
        with pytest.raises(
            OptionError, match="--bit-depth .*: expected window:LOW,HIGH with LOW < HIGH, or percentile"
        ):
            checked_bit_depth(rule)


def test_a_rule_has_one_spelling():
    assert [checked_bit_depth(x) for x in ("", "window:0.0, 4095", "percentile:0.10,99.9")] == [
        "", "window:0,4095", "percentile:0.1,99.9",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pixels", "rule", "says"),
    [
        (GREY, "", r"values of uint16 from \d+ to \d+, more than 8 bits hold; .*--bit-depth.* window:0,4095"),
        (GREY.astype(np.float32) / 4096, "", "values of float32"),
        (EIGHT, "window:0,4095", "has 8 bits, and the bit depth window:0,4095 is of images with more"),
        (np.array([[np.nan, 1.0]]), "window:0,1", "not finite"),
        (np.array([[np.inf, 1.0]]), "percentile:0,100", "not finite"),
    ],
)
def test_what_cannot_be_mapped_is_refused(pixels, rule, says):
    with pytest.raises(DataError, match=says):
        eight_bits(pixels, rule)


DEEP = {
    "png grey": (coded(GREY), GREY),
    "png colour": (coded(COLOUR), COLOUR),
    "png alpha": (coded(ALPHA), COLOUR),
    "tiff grey": (coded(GREY, ".tif"), GREY),
    "tiff colour": (coded(COLOUR, ".tif"), COLOUR),
    "tiff alpha": (coded(ALPHA, ".tif"), COLOUR),
    "tiff of Pillow": (saved(GREY, "TIFF", compression="tiff_lzw"), GREY),
    "tiff float": (saved(GREY.astype(np.float32), "TIFF"), GREY),
    "tiff int32": (saved(GREY.astype(np.int32), "TIFF"), GREY),
    "tiff int16": (coded(GREY.astype(np.int16), ".tif"), GREY),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("content", "pixels"), DEEP.values(), ids=DEEP)
def test_more_than_8_bits_are_packed_as_png(content, pixels, rule):
    packed, info = packed_image(content, rule)
    assert packed.startswith(b"\x89PNG")
    assert (info.size, info.bits > 8) == ((30, 40), True)
    expected = eight_bits(pixels, rule)
    np.testing.assert_array_equal(decode(packed, "x"), expected if expected.ndim == 3 else np.dstack([expected] * 3))
    with pytest.raises(DataError, match="more than 8 bits hold"):
        packed_image(content)


SOUND = {
    "bmp": saved(EIGHT, "BMP"),
    "bmp palette": saved(EIGHT, "BMP", "P"),
    "webp": saved(EIGHT, "WEBP", lossless=True),
    "webp lossy": saved(EIGHT, "WEBP"),
    "webp alpha": saved(np.dstack([EIGHT, EIGHT[..., 0]]), "WEBP", lossless=True, exact=True),
    "tiff": saved(EIGHT, "TIFF", compression="tiff_adobe_deflate"),
    "tiff alpha": saved(np.dstack([EIGHT, EIGHT[..., 0]]), "TIFF"),
    "tiff grey": saved(EIGHT, "TIFF", "L"),
    "tiff bits": saved(EIGHT, "TIFF", "1"),
}


@pytest.mark.parametrize("content", SOUND.values(), ids=SOUND)
def test_other_formats_of_8_bits_are_packed_without_loss(content):
    packed, info = packed_image(content)
    assert packed.startswith(b"\x89PNG")
    assert (info.size, info.bits) == ((30, 40), 8)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(decode(packed, "x")[..., ::-1], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("content", [jpeg(), coded(EIGHT)], ids=["jpeg", "png"])
def test_jpeg_and_png_stay_as_they_are(content):
    assert packed_image(content)[0] == content
    packed, _ = packed_image(content, "percentile:2,98")
    np.testing.assert_array_equal(decode(packed, "x"), eight_bits(decode(content, "x"), "percentile:2,98"))


def tiff_of(width, height, *tags):
    """The header of a TIFF of 8 bits of grey, with further tags (number, value)."""
    known = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 100, **dict(tags)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(known.items()))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(known)) + entries + bytes(4) + bytes(100)


def bmp_of(width, height):
    return b"BM" + struct.pack("<IHHI", 200, 0, 0, 54) + struct.pack("<IiiHHIIIIII", 40, width, height, 1, 24, *[0] * 6)


def webp_of(width, height):
    """A lossless WEBP that announces a size (RFC 9649 section 3.4) and holds no pixels."""
    bits = (width - 1) | (height - 1) << 14
    chunk = b"VP8L" + struct.pack("<I", 10) + b"\x2f" + struct.pack("<I", bits) + bytes(5)
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


PAGES = {"save_all": True, "append_images": [Image.fromarray(255 - EIGHT)]}
REFUSED = {
    "pages": (saved(EIGHT, "TIFF", **PAGES), "a TIFF of several pages; save the page"),
    "animated": (saved(EIGHT, "WEBP", **PAGES), "an animated WEBP; save the picture"),
    "rotated": (
        saved(EIGHT, "TIFF", tiffinfo={274: 6}),
        "a TIFF that asks to be rotated .*Orientation 6.*save it upright",
    ),
    "huge tiff": (tiff_of(9000, 8000), "9000 x 8000 pixels, more than 64 million"),
    "huge bmp": (bmp_of(9000, 8000), "9000 x 8000 pixels, more than 64 million"),
    "huge webp": (webp_of(9000, 8000), "9000 x 8000 pixels, more than 64 million"),
    "vast tiff": (tiff_of(2**31 - 1, 2**31 - 1), "TIFF|million|bomb"),
    "cut tiff": (SOUND["tiff"][:-150], "damaged TIFF"),
    "cut bmp": (SOUND["bmp"][:-200], "damaged BMP"),
    "cut webp": (SOUND["webp"][:-200], "damaged WEBP"),
    "cut deep tiff": (DEEP["tiff grey"][0][:700], "TIFF"),
    "cut deep png": (DEEP["png grey"][0][:-300], "damaged PNG"),
    "white is 0": (saved(GREY, "TIFF", tiffinfo={262: 0}), "a TIFF of 16 bits in a form that is not read; save it"),
    "float64": (coded(GREY.astype(np.float64), ".tif"), "TIFF of 1 channel of 64 bits, floating.* 16 bits, grey"),
    "float colours": (
        coded(COLOUR.astype(np.float32), ".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 1]),
        "a TIFF of 3 channels of 32 bits, floating-point numbers, is not read; save it with 8 or 16 bits",
    ),
    "LogLuv": (coded(COLOUR.astype(np.float32), ".tif"), "a TIFF of 3 channels of 16 bits, .*LogLuv, is not read"),
    "gif": (saved(EIGHT, "GIF", "P"), "none of JPEG, PNG, BMP, WEBP, TIFF; convert it"),
    "wav": (b"RIFF\0\0\0\0WAVEfmt ", "damaged WEBP: its header cannot be read"),
}


@pytest.mark.parametrize("rule", ["", "percentile:0,100"])
@pytest.mark.parametrize(("content", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(content, says, rule, monkeypatch):
    monkeypatch.setattr(
        image_check, "decoded", lambda *args: pytest.fail("pixels were decoded")
    ) if "64" in says else None
    with pytest.raises(DataError, match=says):
        packed_image(content, rule)


@pytest.mark.parametrize("name", ["float colours", "LogLuv"])
def test_detection_says_what_a_tiff_is_that_is_not_read(name):
    with pytest.raises(DataError, match=f"^a.tif: {REFUSED[name][1]}"):
        read_image(REFUSED[name][0], "a.tif")


@given(st.sampled_from([*SOUND.values(), *(content for content, _ in DEEP.values())]), st.data())
def test_random_damage_gives_no_other_error(content, data):
    damaged = bytearray(content)
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        assert packed_image(bytes(damaged), "percentile:0,100")[0].startswith(b"\x89PNG")
    except DataError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize("pixels", [EIGHT, GREY], ids=["8 bits", "16 bits"])
def test_a_chunk_that_claims_gigabytes_takes_no_memory(pixels, monkeypatch):
    content = bytearray(coded(pixels))
    content[33] = 0xE0  # of the length of IDAT; Pillow reads it in parts, and stops at the end of the pixels
    monkeypatch.setattr(cv2, "imdecode", lambda *args: pytest.fail("OpenCV would reserve 3.7 GB"))
    for read in (packed_image, lambda x: read_image(x, "x"), lambda x: image_check.file_pixels(x, "percentile:0,100")):
        with pytest.raises(DataError):
            read(bytes(content))
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(bytes(content), "x")


@pytest.mark.parametrize("engine", ["python", "native"])
@pytest.mark.parametrize("content", [coded(GREY), coded(COLOUR), coded(COLOUR, ".tif")], ids=["grey", "colour", "tiff"])
def test_a_record_with_more_than_8_bits_is_not_read(tmp_path, engine, content):
    """4095 of 65535 was 15 of 255, a black picture."""
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, pack(pack_label(np.array([[0, 0.1, 0.1, 0.5, 0.5, 0]], np.float32)), content, 0))
    with pytest.raises(DataError, match=r"a\.rec.*has more than 8 bits.*pack the images again with --bit-depth"):
        next(open_batches(BatchSpec(str(tmp_path / "a.rec"), 1, 32, augment=None, num_classes=1, workers=0), engine))


def voc_of(root, images, suffix=".png"):
    for name, content in images.items():
        add(root, name, CAT, DOG, image=content, suffix=suffix)
    image_set(root, "trainval", *images)
    return root


def prepare(root, target, *words):
    main([f"--root={root}", f"--target={target}", "--num-thread=1", *words])
    reader = RecordReader(target.with_suffix(".rec"))
    return [reader.record(k) for k in range(len(reader))]


def test_12_bits_are_packed_as_the_8_that_they_were(tmp_path):
    pictures = {
        name: np.random.default_rng(seed).integers(0, 256, (30, 40, 3)).astype(np.uint8)
        for seed, name in enumerate("abc")
    }
    plain = prepare(voc_of(tmp_path / "8", {n: coded(p) for n, p in pictures.items()}), tmp_path / "plain.lst")
    deep = voc_of(tmp_path / "12", {n: coded(p.astype(np.uint16) * 16) for n, p in pictures.items()})
    with pytest.raises(
        DataError, match=r"cannot be used: 3 .*a\.png: has values of uint16 from 0 to 4080, more than 8 bits.*"
    ):
        prepare(deep, tmp_path / "x.lst")
    packed = prepare(deep, tmp_path / "deep.lst", "--bit-depth=window:0, 4080.0")
    for one, other in zip(plain, packed, strict=True):
        np.testing.assert_array_equal(one.label, other.label)
        assert one.image == other.image
    assert [read_sidecar(tmp_path / f"{name}.rec").bit_depth for name in ("plain", "deep")] == ["", "window:0,4080"]


def test_images_of_both_depths_are_told_apart_by_a_window(tmp_path):
    root = voc_of(tmp_path / "set", {"a": coded(COLOUR), "b": coded(EIGHT)})
    words = ("--bit-depth=window:0,4095",)
    with pytest.raises(DataError, match=r"cannot be used: 1 .*b\.png: has 8 bits, and the bit depth window:0,4095"):
        prepare(root, tmp_path / "t.lst", *words)
    assert len(prepare(root, tmp_path / "t.lst", *words, "--skip-bad")) == 1
    both = prepare(root, tmp_path / "p.lst", "--bit-depth=percentile:1,99", "--no-shuffle")
    for record, pixels in zip(both, (COLOUR, EIGHT), strict=True):
        np.testing.assert_array_equal(decode(record.image, "x"), eight_bits(pixels, "percentile:1,99"))


@pytest.mark.parametrize("tool", ["prepare_dataset", "im2rec"])
def test_images_that_a_window_clips_are_listed(tmp_path, capsys, tool):
    def told(rule):
        if tool == "im2rec":
            im2rec_of(tmp_path, coded(pixels), f"--bit-depth={rule}", "--class-names=cat")
        else:
            root = voc_of(tmp_path / "v", {"a": coded(pixels)})
            prepare(root, tmp_path / "v.lst", f"--bit-depth={rule}", "--overwrite")
        return re.findall(r"--bit-depth clips many values: 1\n  (.*)\n", capsys.readouterr().out)

    pixels = np.full((30, 40), 100, np.uint16)
    pixels[0, :12] = 4095  # 1 % of them
    for rule in ("window:0,1000", "window:100,1000", "percentile:0,50"):
        assert not told(rule)
    pixels[0, 12] = 1001
    place = "a.png" if tool == "im2rec" else "JPEGImages/a.png"
    assert told("window:0,1000") == [f"{place}: 1%"]
    assert told("window:0,99") == told("window:5000,9000") == [f"{place}: 100%"]


def test_a_wrong_rule_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(OptionError, match="--bit-depth window:9,1: expected"):
        main([f"--root={tmp_path / 'none'}", "--bit-depth=window:9,1"])


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".tiff", ".webp"])
def test_folders_of_these_formats_alone_are_found(tmp_path, suffix):
    content = {".bmp": SOUND["bmp"], ".webp": SOUND["webp"]}.get(suffix, SOUND["tiff"])
    assert len(prepare(voc_of(tmp_path / "voc", {"a": content}, suffix), tmp_path / "v.lst")) == 1
    write(tmp_path / f"yolo/images/a{suffix}", content)
    write(tmp_path / "yolo/images/a.txt", "0 .5 .5 .2 .2\n")
    write(tmp_path / "yolo/images/classes.txt", "cat\n")
    assert len(prepare(tmp_path / "yolo", tmp_path / "y.lst")) == 1


def im2rec_of(tmp_path, content, *words):
    write(tmp_path / "images/a.png", content)
    write(tmp_path / "t.lst", "0\t2\t6\t0\t0.1\t0.1\t0.5\t0.5\t0\ta.png\n")
    im2rec.main([str(tmp_path / "t"), str(tmp_path / "images"), *words])
    return RecordReader(tmp_path / "t.rec").record(0).image


@pytest.mark.parametrize("words", [(), ("--pass-through",), ("--color=-1", "--encoding=.png")])
def test_im2rec_refuses_more_than_8_bits(tmp_path, words):
    for content in (coded(COLOUR), coded(GREY, ".tif"), b"P5 2 1 4095\n" + bytes(4), b"P6 2 1 4095\n" + bytes(12)):
        with pytest.raises(DataError, match=r"a\.png \(line 1\): has values of uint16"):
            im2rec_of(tmp_path, content, *words)


def test_im2rec_maps_them_by_a_rule(tmp_path):
    image = im2rec_of(tmp_path, coded(COLOUR), "--bit-depth=window:0,4095", "--encoding=.png", "--class-names=cat")
    np.testing.assert_array_equal(decode(image, "x"), eight_bits(COLOUR, "window:0,4095"))
    assert read_sidecar(tmp_path / "t.rec").bit_depth == "window:0,4095"
    with pytest.raises(OptionError, match="--pass-through stores files as they are"):
        im2rec_of(tmp_path, coded(COLOUR), "--bit-depth=window:0,4095", "--pass-through")


def test_im2rec_tells_that_a_rule_is_kept_nowhere(tmp_path, caplog):
    (tmp_path / "t.json").unlink(missing_ok=True)
    im2rec_of(tmp_path, coded(COLOUR), "--bit-depth=window:0,4095")
    assert "without a sidecar nothing keeps the bit depth for train.py; give --class-names" in caplog.text
