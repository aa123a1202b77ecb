"""Files that cost more than they show are refused before a decoder runs, at every door; usual ones pass."""

import io
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.errors import DataError
from dataset.image_check import check_image, check_stream, file_pixels
from dataset.image_cost import MAX_SCANS, PNG_SIGNATURE, check_cost
from dataset.transforms import decode
from engines.preprocess import read_image

DOORS = {
    "packing": check_image,
    "im2rec": check_stream,
    "bit depth": lambda content: file_pixels(content, "percentile:1,99"),
    "training": lambda content: decode(content, "record 3"),
    "demo and service": lambda content: read_image(content, "a.png"),
}
DOOR = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
LIMIT = 3 << 29  # bytes of addresses, for an interpreter with OpenCV and 512 MB more


def chunk(kind, data, length=None):
    return (
        struct.pack(">I", len(data) if length is None else length)
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


def png(data, side=1, length=None):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", data, length) + chunk(b"IEND", b"")


def jpeg(side=64, **options):
    stream = io.BytesIO()
    Image.effect_noise((side, side), 50).convert("RGB").save(stream, "JPEG", **options)
    return stream.getvalue()


def with_scans(count, side=64):
    """A progressive JPEG whose last scan comes `count` times more."""
    content = jpeg(side, progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * count + content[-2:]


FALSE_LENGTH = png(zlib.compress(b"\0\1\2\3"), length=2_000_000_000)
BOMB = png(zlib.compress(bytes(80 << 20), 9))


@DOOR
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (FALSE_LENGTH, "damaged PNG: truncated, or a part of it claims to be longer than the file"),
        (png(bytes(100_000)), "damaged PNG: it holds more data than its size needs"),
        (with_scans(MAX_SCANS), "a JPEG of 101 scans or more, which takes too long to decode; save it anew"),
    ],
    ids=["length", "data", "scans"],
)
def test_what_costs_too_much_is_refused_by_its_reason(door, content, reason):
    with pytest.raises(DataError, match=reason):
        door(content)


@pytest.mark.parametrize("door", [check_image, check_stream, DOORS["demo and service"]])
def test_what_unpacks_to_more_than_the_pixels_is_refused(door):
    assert len(BOMB) < 100_000
    with pytest.raises(DataError, match="more data than its size needs"):
        door(BOMB)


def test_an_image_that_claims_gigabytes_takes_none():
    """With less memory than it claims, the sentence is the same."""
    program = (
        "import sys\n"
        "from dataset.image_check import check_image\n"
        "from common.errors import DataError\n"
        "try:\n    check_image(sys.stdin.buffer.read())\n"
        "except DataError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=FALSE_LENGTH,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
        capture_output=True,
    )
    assert done.stdout.decode().strip().endswith("a part of it claims to be longer than the file"), done.stderr


def test_large_images_may_have_fewer_scans():
    content = with_scans(40)
    frame = content.index(b"\xff\xc2") + 5
    check_cost(content)
    with pytest.raises(DataError, match="a JPEG of 17 scans or more"):
        check_cost(content[:frame] + struct.pack(">HH", 7900, 7800) + content[frame + 4 :])


def test_bytes_of_a_scan_in_metadata_are_none():
    content = jpeg(exif=b"Exif\0\0" + b"\xff\xda" * 500)
    check_cost(content)
    assert check_image(content).size == (64, 64)


@pytest.mark.parametrize("parts", [b"\0\0\0\0eXIf\0\0\0\0", b"\xff\xfe\0\2"], ids=["png", "jpeg"])
def test_millions_of_empty_parts_are_refused(parts):
    content = PNG_SIGNATURE if parts[0] == 0 else b"\xff\xd8"
    with pytest.raises(DataError, match="more than 131072 parts"):
        check_cost(content + parts * 200_000 + b"\xff\xda" * 20)


@pytest.mark.parametrize("side", [1, 7, 300])
@pytest.mark.parametrize("level", [0, 9])
def test_whole_images_pass(side, level):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=level)
    for content in (stream.getvalue(), stream.getvalue() + b"after the end", jpeg(progressive=True), with_scans(80)):
        check_cost(content)


@given(st.binary(max_size=200), st.sampled_from([PNG_SIGNATURE, b"\xff\xd8\xff", png(b"x" * 50), with_scans(120)]))
def test_any_bytes_pass_or_are_refused(content, begin):
    try:
        check_cost(begin + content)
        check_cost(content + begin[: len(content)])
    except DataError:
        pass


PEAK = """
import re, sys
from pathlib import Path
from engines.preprocess import read_image
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
content = Path(sys.argv[1]).read_bytes()
read_image(Path(sys.argv[2]).read_bytes(), "warm")
before = peak()
height, width, _ = read_image(content, "a").shape
print((peak() - before) / (height * width))
"""


@pytest.mark.parametrize(
    ("mode", "progressive", "limit"), [("RGB", False, 8), ("RGB", True, 12), ("CMYK", True, 14)], ids=str
)
def test_a_decoder_takes_no_more_memory_than_the_documents_say(tmp_path, mode, progressive, limit):
    """Bytes for a pixel at the peak; docs/deployment.md, Decoding: 6, 9 and 11 of 25 million pixels. The service gives
    20."""
    image = Image.effect_noise((1800, 1800), 50).convert("RGB").convert(mode)
    image.save(tmp_path / "a.jpg", quality=90, subsampling=0, progressive=progressive)
    image.resize((64, 64)).save(tmp_path / "b.jpg", progressive=progressive)
    if progressive:
        content = (tmp_path / "a.jpg").read_bytes()
        last = content.rindex(b"\xff\xda")
        (tmp_path / "a.jpg").write_bytes(content[:-2] + content[last:-2] * 20 + content[-2:])
    words = [sys.executable, "-c", PEAK, str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert 3 < float(done.stdout) < limit, done.stdout
