"""Damaged images are found before training, by the reason that the user needs."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.errors import DataError
from dataset.image_check import check_image, check_stream, image_header
from tests.dataset.voc import jpeg


def encode(kind, mode="RGB", **options):
    stream = io.BytesIO()
    Image.effect_noise((40, 30), 50).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def png_of(width, height):
    """A PNG that announces a size and holds no pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    "content",
    [
        encode("JPEG"),
        encode("JPEG", "L"),
        encode("JPEG", "CMYK"),
        encode("JPEG", progressive=True),
        encode("PNG"),
        encode("PNG", "RGBA"),
        encode("PNG", "P"),
        encode("PNG", "1"),
    ],
    ids=["jpeg", "grey", "cmyk", "progressive", "png", "rgba", "palette", "bits"],
)
def test_whole_images_pass(content):
    info = check_image(content)
    assert info.size == (30, 40)
    assert info.orientation == 1


@pytest.mark.parametrize("check", [check_image, check_stream])
def test_16_bit_png_is_refused(check):
    stream = io.BytesIO()
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)).save(stream, "PNG")
    with pytest.raises(
        DataError, match="has values of uint16 from 0 to 1199, .*--bit-depth, for instance window:0,2047"
    ):
        check(stream.getvalue())
    assert image_header(stream.getvalue()).bits == 16


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"not an image at all", "none of JPEG, PNG, BMP, WEBP, TIFF"),
        (encode("GIF", "L"), "none of JPEG, PNG, BMP, WEBP, TIFF"),
        (jpeg(400, 300)[:-2000], "damaged JPEG.*truncated"),
        (jpeg()[:100], "damaged JPEG"),
        (encode("PNG")[:-200], "damaged PNG"),
        (b"\xff\xd8\xff" + b"x" * 500, "damaged JPEG"),
        (png_of(60000, 60000), "more than 64 million|bomb"),
        (png_of(9000, 9000), "more than 64 million"),
        (png_of(40, 30), "damaged PNG"),
    ],
)
def test_reason(content, reason):
    with pytest.raises(DataError, match=reason):
        check_image(content)


def test_orientation_is_told_and_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    info = check_image(encode("JPEG", exif=exif))
    assert info.size == (30, 40)
    assert info.orientation == 6


@given(st.data())
def test_random_damage_gives_no_other_error(data):
    content = bytearray(data.draw(st.sampled_from([encode("JPEG"), encode("PNG"), encode("PNG", "P")])))
    for at in data.draw(st.lists(st.integers(0, min(300, len(content) - 1)), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    try:
        assert len(check_image(bytes(content)).size) == 2
    except DataError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize(
    "content",
    [
        encode("JPEG"),
        encode("JPEG", progressive=True),
        encode("PNG", "P"),
        encode("BMP"),
        encode("TIFF"),
        encode("WEBP"),
    ],
    ids=["jpeg", "progressive", "png", "bmp", "tiff", "webp"],
)
def test_quick_check_passes_whole_images_of_more_formats(content):
    info = check_stream(content)
    assert (info.size, info.orientation) == ((30, 40), 1)


WHOLE = {kind: encode(kind) for kind in ("JPEG", "PNG")}


@given(st.sampled_from(["JPEG", "PNG"]), st.floats(0, 1, exclude_max=True))
def test_quick_check_refuses_every_cut(kind, share):
    content = WHOLE[kind]
    cut = content[: int(share * (len(content) - 2))]
    for check in (check_image, check_stream):
        with pytest.raises(DataError):
            check(cut)


@given(st.data())
def test_quick_check_notices_any_change_of_a_png(data):
    content = bytearray(WHOLE["PNG"])
    at = data.draw(st.integers(8, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DataError):
        check_stream(bytes(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty file"), (b"text", "not an image"), (png_of(9000, 9000), "more than 64 million")],
)
def test_quick_check_gives_the_reason(content, message):
    with pytest.raises(DataError, match=message):
        check_stream(content)


def test_quick_check_reads_the_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert check_stream(encode("JPEG", exif=exif)).orientation == 6


def test_quick_check_decodes_a_jpeg_that_only_lacks_its_end_marker():
    content = WHOLE["JPEG"][:-2] + b"\0" * 100
    assert check_stream(content) == check_image(content)


def damaged_jpeg(at, value, content=WHOLE["JPEG"]):
    return content[:at] + bytes([value]) + content[at + 1 :]


@given(st.data())
def test_quick_check_of_a_damaged_jpeg_header_never_passes_what_pillow_refuses(data):
    """The header is read without Pillow where it is a usual one; both must say the same of what is left."""
    header = WHOLE["JPEG"].index(b"\xff\xda")
    content = damaged_jpeg(data.draw(st.integers(2, header - 1)), data.draw(st.integers(0, 255)))
    try:
        info = check_stream(content)
    except DataError:
        return
    with Image.open(io.BytesIO(content)) as image:
        assert info.size == image.size[::-1]


@pytest.mark.parametrize("kind", [{}, {"progressive": True}, {"mode": "L"}, {"comment": b"text"}, {"dpi": (72, 72)}])
def test_usual_jpegs_are_read_without_pillow(kind, monkeypatch):
    content = encode("JPEG", **kind)
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("Pillow was asked"))
    assert check_stream(content).size == (30, 40)


@pytest.mark.parametrize("content", [b"DDS |\0\0\0" + bytes(200), encode("GIF", "L")], ids=["dds", "gif"])
def test_header_of_a_format_that_training_cannot_read_is_a_data_error(content):
    with pytest.raises(DataError, match="header cannot be read"):
        image_header(content)


@pytest.mark.parametrize("check", [check_image, check_stream, image_header])
def test_an_error_of_pillows_decoders_in_c_is_a_data_error(check, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("the decoder failed")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DataError, match="the decoder failed"):
        check(encode("PNG"))


@pytest.mark.parametrize("check", [check_image, check_stream, image_header])
def test_pillows_warnings_are_not_shown(check):
    with warnings.catch_warnings(action="error"), pytest.raises(DataError, match="more than 64 million"):
        check(png_of(11000, 9000))


def png_with(*chunks, last=()):
    """A PNG with more chunks after its header and before its end."""
    content = encode("PNG")
    packed = [
        [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in some]
        for some in (chunks, last)
    ]
    return b"".join([content[:33], *packed[0], content[33:-12], *packed[1], content[-12:]])


PROFILE = b"icc\0\0" + zlib.compress(bytes(2 << 20))
TEXT = b"note\0\0" + zlib.compress(b"x" * (2 << 20))


def jpeg_with_exif(value, kind):
    """A JPEG whose EXIF orientation has another type: 2 = text, 5 = fraction, 7 = bytes."""
    data = struct.pack("<HHII", 0x0112, kind, len(value), 26) + struct.pack("<I", 0) + value
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + data
    content = encode("JPEG")
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]


@pytest.mark.parametrize(
    "content",
    [
        png_with((b"iCCP", PROFILE)),
        png_with((b"zTXt", TEXT)),
        png_with(last=[(b"zTXt", TEXT)]),
        png_with((b"eXIf", b"nonsense")),
        jpeg_with_exif(b"6 of eight\0", 2),
        jpeg_with_exif(struct.pack("<II", 6, 0), 5),
        jpeg_with_exif(b"\6\0\0\0\0", 7),
        WHOLE["JPEG"][:2] + b"\xff\xe1\0\x0eExif\0\0broken" + WHOLE["JPEG"][2:],
    ],
    ids=["profile", "text", "text at the end", "png exif", "text for a number", "fraction", "bytes", "broken exif"],
)
@pytest.mark.parametrize("check", [check_image, check_stream, image_header])
def test_metadata_never_damages_an_image(content, check):
    info = check(content)
    assert (info.size, info.orientation) == ((30, 40), 1)


@pytest.mark.parametrize("value", [0, 9, 65535])
@pytest.mark.parametrize("check", [check_image, check_stream])
def test_an_orientation_out_of_range_is_no_rotation(value, check):
    exif = Image.Exif()
    exif[0x0112] = value
    assert check(encode("JPEG", exif=exif)).orientation == 1


def test_damaged_pixels_behind_large_metadata_are_found():
    content = bytearray(png_with((b"zTXt", TEXT)))
    content[-40] ^= 255
    for check in (check_image, check_stream):
        with pytest.raises(DataError, match="PNG"):
            check(bytes(content))
