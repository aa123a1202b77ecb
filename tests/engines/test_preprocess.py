"""Images as networks read them: like validation, and never a damaged one."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError
from dataset.image_check import packed_image
from dataset.iterator import DetRecordIter
from dataset.labels import pack_label
from dataset.recordio import RecordWriter, pack
from engines.preprocess import InputWriter, encode_image, read_image, write_input
from model.checkpoint import load_checkpoint
from model.folder import model_from_checkpoint
from tests.model.tiny import picture, save_tiny


def _encoded(pixels, kind="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


PIXELS = picture(1, 60, 90)
JPEG = _encoded(PIXELS, quality=95)


def test_paths_bytes_and_arrays_are_the_same_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    image = read_image(tmp_path / "a.jpg", "x")
    assert image.shape == (60, 90, 3)
    assert image.dtype == np.uint8
    for other in (str(tmp_path / "a.jpg"), JPEG, bytearray(JPEG), memoryview(JPEG), image):
        np.testing.assert_array_equal(read_image(other, "x"), image)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_arrays_are_rgb(kind):
    np.testing.assert_array_equal(read_image(_encoded(PIXELS, kind), "x"), PIXELS)
    np.testing.assert_array_equal(read_image(encode_image(PIXELS, f".{kind.lower()}"), "x"), PIXELS)


def test_grey_transparent_and_webp_images_become_rgb():
    grey = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    np.testing.assert_array_equal(read_image(_encoded(grey, "PNG"), "x"), np.stack([grey] * 3, axis=2))
    rgba = np.concatenate([PIXELS, np.full((60, 90, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(read_image(_encoded(rgba, "PNG"), "x"), PIXELS)
    assert read_image(_encoded(PIXELS, "WEBP"), "x").shape == (60, 90, 3)


def test_stored_pixels_are_not_rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(_encoded(PIXELS, exif=exif), "x").shape == (60, 90, 3)


def _huge_png():
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT" + bytes(1000)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "format"),
        (b"no image", "format"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (_encoded(PIXELS, "PNG")[:300], "truncated"),
        (_encoded(PIXELS, "GIF"), "format"),
        (_huge_png(), "60000 x 60000|decompression bomb"),
        (PIXELS.astype(np.float32), "float32"),
        (PIXELS[..., 0], "uint8 RGB"),
        (PIXELS[:0], "0 pixels"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_image_is_refused_by_name(image, reason):
    with pytest.raises(DataError, match=reason) as caught:
        read_image(image, "image 7")
    assert "image 7" in str(caught.value)


PAGES = {"save_all": True, "append_images": [Image.fromarray(255 - PIXELS)]}


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (_encoded(PIXELS, "TIFF", **PAGES), "a TIFF of several pages"),
        (_encoded(PIXELS, "TIFF", tiffinfo={274: 6}), "a TIFF that asks to be rotated"),
        (_encoded(PIXELS, "WEBP", **PAGES), "an animated WEBP"),
        (_encoded(PIXELS, "TIFF")[:-300], "TIFF"),
    ],
)
def test_files_that_show_no_single_picture_are_refused_by_name(image, reason):
    with pytest.raises(DataError, match=f"image 7: .*{reason}"):
        read_image(image, "image 7")


def test_detection_reads_what_packing_stores():
    """By one rule, whatever the format; a lossy WEBP and the grey of a TIFF included."""
    deep = _encoded(PIXELS[..., 0].astype(np.uint16) * 16, "TIFF")
    for content, rule in ((deep, "window:0,4080"), (_encoded(PIXELS, "WEBP"), ""), (_encoded(PIXELS, "TIFF"), ""),
                          (JPEG, "percentile:2,98"), (deep, "percentile:2,98")):  # fmt: skip
        stored = read_image(packed_image(content, rule)[0], "x")
        np.testing.assert_array_equal(read_image(content, "x", rule), stored)


@pytest.mark.parametrize("name", ["none.jpg", "", "a\0.jpg"])
def test_files_that_cannot_be_read_are_named(tmp_path, name):
    with pytest.raises(DataError, match="cannot be read"):
        read_image(str(tmp_path / name), "x")


@pytest.mark.parametrize("size", [(96, 80), (32, 128)])
def test_the_network_reads_what_it_reads_in_validation(tmp_path, size):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, pack(pack_label(np.array([[0, 0.1, 0.1, 0.5, 0.5, 0]], np.float32)), JPEG, 0))
    mean = (123.0, 117.0, 104.0)
    iterator = DetRecordIter(
        str(tmp_path / "a.rec"), 1, (3, *size), augment=None, mean_pixels=mean, num_classes=1, workers=0
    )
    out = np.zeros((3, *size), np.float32)
    write_input(read_image(JPEG, "x"), np.array(mean, np.float32), np.ones(3, np.float32), out)
    np.testing.assert_array_equal(out, next(iterator).data[0].asnumpy()[0])
    iterator.close()


def test_reading_leaves_arrays_alone():
    pixels = PIXELS[:, ::-1]
    before = pixels.copy()
    write_input(pixels, np.zeros(3, np.float32), np.ones(3, np.float32), np.zeros((3, 32, 32), np.float32))
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("mode", ["force", "letterbox"])
def test_uint8_networks_read_the_pixels_that_others_read_normalised(tmp_path, mode):
    """Their own first layer subtracts and divides; rows without a picture are zero."""
    manifest = model_from_checkpoint(load_checkpoint(save_tiny(tmp_path / "tiny", resize_mode=mode), 3)).manifest
    plain, raw = InputWriter(manifest), InputWriter(dataclasses.replace(manifest, input_format="uint8_nhwc"))
    normalised, pixels = plain.batch(1, 2), raw.batch(1, 2)
    views = [plain.write(PIXELS, normalised[0]), raw.write(PIXELS, pixels[0])]
    np.testing.assert_array_equal(*views)
    assert pixels.dtype == np.uint8
    mean, std = (np.array(x, np.float32) for x in (manifest.mean, manifest.std))
    np.testing.assert_array_equal(((pixels[0] - mean) / std).transpose(2, 0, 1), normalised[0])
    assert not pixels[1].any()
    assert not normalised[1].any()
    assert raw.noise(2).shape == (2, *manifest.size, 3)
    np.testing.assert_array_equal(plain.noise(2), plain.noise(2))
