"""Would a file cost a decoder more than its pixels do, in memory or time? Its structure tells before a decoder runs."""

import re
import struct
import zlib
from collections.abc import Iterator

from common.errors import DataError
from machine.opencv import MAX_PIXELS

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_SCANS = 100  # of a JPEG; libjpeg writes 10 (jpeg_simple_progression), each is a pass over all pixels
_SCANS_OF_LARGEST = 16  # of an image of MAX_PIXELS; smaller ones may have more, up to MAX_SCANS
_MAX_PARTS = 1 << 17  # chunks or segments; 64 million pixels of 16 bits in chunks of 8 kB, as libpng's, have 47,000
_START_OF_SCAN = b"\xff\xda"
# FF and the code of a marker; FF 00 is data, D0 to D7 restart within a scan, 01 has no meaning (T.81 section B.1.1).
_MARKER = re.compile(rb"\xff([^\xff\x00\x01\xd0-\xd7])")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type of a PNG (ISO/IEC 15948 table 11.1)
_MOST_INFLATED = 1032  # times, by deflate (zlib's technical details)
_CHEAP = 64 << 20  # bytes that are inflated in no time
_SLACK = 1 << 16
_STEP_IN, _STEP_OUT = 1 << 16, 1 << 20


def check_cost(content: bytes, inflate: bool = True) -> None:
    """DataError, the reason alone, for a PNG or JPEG that costs more than it shows; other formats pass.

    A PNG: a chunk that claims to be longer than the file (OpenCV 4.11 reserves what it claims, up to 4 GiB), more data
    than its size can need, packed or, with `inflate`, unpacked. A JPEG: more scans than MAX_SCANS, or than its pixels
    allow.
    """
    if content.startswith(PNG_SIGNATURE):
        _check_png(content, inflate)
    elif content.startswith(b"\xff\xd8") and content.count(_START_OF_SCAN) > _SCANS_OF_LARGEST:
        _check_scans(content)


def _check_png(content: bytes, inflate: bool) -> None:
    data: list[tuple[int, int]] = []
    for begin, length in _chunks(content):
        if content[begin + 4 : begin + 8] == b"IDAT":
            data.append((begin + 8, begin + 8 + length))
    packed, most = sum(end - begin for begin, end in data), 2 * _raw_bytes(content) + _SLACK
    if packed > most or (inflate and packed * _MOST_INFLATED > max(most, _CHEAP) and _exceeds(content, data, most)):
        raise DataError("damaged PNG: it holds more data than its size needs")


def _chunks(content: bytes) -> Iterator[tuple[int, int]]:
    """(begin, length of the data) of each chunk up to IEND; DataError for one that is longer than the file."""
    begin, kind = len(PNG_SIGNATURE), b""
    for _ in range(_MAX_PARTS):
        if kind == b"IEND" or begin >= len(content):
            return
        length, kind = int.from_bytes(content[begin : begin + 4], "big"), content[begin + 4 : begin + 8]
        if length > len(content):
            raise DataError("damaged PNG: truncated, or a part of it claims to be longer than the file")
        yield begin, length
        begin += length + 12  # its length, type and checksum
    raise DataError(f"damaged PNG: more than {_MAX_PARTS} parts")


def _raw_bytes(content: bytes) -> int:
    """Bytes of the unpacked rows as IHDR says, each with its filter; seven passes have less than twice as many."""
    header = content[len(PNG_SIGNATURE) + 8 :][:10]
    width, height, bits, colour = struct.unpack(">IIBB", header) if len(header) == 10 else (0, 0, 0, 0)
    return height * (1 + -(-width * bits * _CHANNELS.get(colour, 4) // 8))


def _exceeds(content: bytes, parts: list[tuple[int, int]], most: int) -> bool:
    """Whether parts of a zlib stream are more than `most` bytes when unpacked; a damaged stream ends where it is."""
    inflater, total = zlib.decompressobj(), 0
    try:
        for begin, end in parts:
            for step in range(begin, end, _STEP_IN):
                left = content[step : min(end, step + _STEP_IN)]
                while left and not inflater.eof:
                    total += len(inflater.decompress(left, _STEP_OUT))
                    left = inflater.unconsumed_tail
                    if total > most:
                        return True
    except zlib.error:  # the decoder tells
        pass
    return False


def _check_scans(content: bytes) -> None:
    scans, pixels, begin = 0, 0, 2
    for _ in range(_MAX_PARTS):
        found = _MARKER.search(content, begin)
        if not found or found[1][0] == _EOI:
            break
        marker, begin = found[1][0], found.end()
        if marker == _SOI:
            continue
        if marker in _FRAMES:
            height, width = struct.unpack(">HH", content[begin + 3 : begin + 7].ljust(4, b"\0"))
            pixels = max(pixels, height * width)
        scans += marker == _SOS
        if scans > MAX_SCANS or scans * pixels > _SCANS_OF_LARGEST * MAX_PIXELS:
            raise DataError(f"a JPEG of {scans} scans or more, which takes too long to decode; save it anew")
        begin += max(2, int.from_bytes(content[begin : begin + 2], "big"))
    else:
        raise DataError(f"damaged JPEG: more than {_MAX_PARTS} parts")
