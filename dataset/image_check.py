"""Is an encoded image whole, and what are its pixels in 8 bits? Training decodes with OpenCV, which takes half a JPEG
for one with a grey lower half.

Images are never rotated: EXIF orientation is ignored when packing and when training, and annotations refer to the
pixels as stored (cv2.IMREAD_IGNORE_ORIENTATION).
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from common.errors import DataError
from common.files import open_regular
from common.sizes import Size
from dataset.image_cost import PNG_SIGNATURE, check_cost
from dataset.transforms import (
    DECODE_FLAGS,
    DECODE_FLAGS_RGB,
    eight_bits,
    share_outside,
    too_deep,
)
from machine.opencv import MAX_PIXELS, cv2

MAX_BYTES = 256 << 20
MANY_OUTSIDE = 0.01  # share of an image's values that a window may clip without a word, as hot pixels
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
OTHER_SUFFIXES = (".jpe", ".jfif", ".dib", ".gif", ".jp2", ".avif", ".heic", ".heif", ".ppm", ".pgm", ".tga", ".dds")
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    PNG_SIGNATURE: "PNG",
    b"BM": "BMP",
    b"RIFF": "WEBP",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
}
_SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}
_HEADER_BYTES = 1 << 20  # of a file, enough for most headers
_READABLE = (*FORMATS, "PPM")  # by Pillow and by OpenCV
# What Pillow raises for damaged files; RuntimeError comes from its decoders in C.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)
_END_OF_IMAGE = b"\xff\xd9"  # a JPEG's last marker; entropy-coded data never hold these bytes
# Segments of a JPEG (ITU-T T.81 table B.1) that say nothing about its orientation: FF, marker, length of what follows.
_SEGMENT = struct.Struct(">BBH")
_SCAN, _QUANTISATION, _FRAMES = 0xDA, 0xDB, (0xC0, 0xC2)  # baseline, progressive
_PLAIN = {_SCAN, _QUANTISATION, *_FRAMES, 0xC4, 0xDD, 0xE0, 0xEE, 0xFE}
_METADATA = {0xE2, *range(0xE3, 0xEE), 0xEF, 0xFE}  # APP2 (profiles) to APP15, but Adobe's APP14, and comments
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
_FRAME = struct.Struct(">BHHB")  # bits of a sample, height, width, components
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright, 5 to 8 exchange height and width
_PNG_BITS = 24  # where IHDR, the first chunk, has the bits of a sample
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_PLANES, _TIFF_SAMPLES = 258, 262, 284, 339  # tags of TIFF 6.0, sections 8 and 19
_LOG_LUV = 32845  # of the tag PhotometricInterpretation, as OpenCV writes floating-point colours
_DEEP_TIFFS = "save it with 8 or 16 bits, grey (BlackIsZero) or RGB, the channels of a pixel side by side"


@dataclass(frozen=True)
class ImageInfo:
    """size (height, width) as stored, EXIF orientation 1..8, bits of a sample (8 where there are fewer).

    outside: the share of values that a window of --bit-depth has clipped.
    """

    size: Size
    orientation: int
    bits: int = 8
    outside: float = 0.0


def packed_image(content: bytes, rule: str = "") -> tuple[bytes, ImageInfo]:
    """What a record holds of an image file, and what is known of the file.

    A JPEG or PNG of 8 bits stays as it is; with a rule of --bit-depth, and of BMP, WEBP and TIFF, the pixels are stored
    as PNG of 8 bits, without loss. Alpha is not kept. Whatever is wrong raises DataError with the reason alone: another
    format, more than 64 megapixels (before decoding), a cut-off or undecodable stream, several pages, more than 8 bits
    without a rule and what eight_bits refuses.
    """
    kind = _kind(content)
    if kind in ("JPEG", "PNG") and not rule:
        info = _read(content, (kind,), kind, load=True)
        if info.bits == 8:
            decoded(content, info.size, kind)
            return content, info
    pixels, info = file_pixels(content, rule)
    return encode_png(pixels), info


def _kind(content: bytes) -> str:
    """The format of a file by its first bytes; DataError with the reason alone for another one."""
    kind = next((name for signature, name in _SIGNATURES.items() if content.startswith(signature)), None)
    if not content or kind is None:
        raise DataError(f"none of {', '.join(FORMATS)}; convert it" if content else "empty file")
    return kind


def file_pixels(content: bytes, rule: str) -> tuple[np.ndarray, ImageInfo]:
    """(pixels (h, w, 3) uint8 RGB, or (h, w) grey, by a rule of --bit-depth; what is known) of a whole image file.

    DataError with the reason alone.
    """
    kind = _kind(content)
    check_cost(content)
    with _opened(without_metadata(content), (kind,), kind) as image:
        refuse_several(image)
        info = _info(image, content, exif=True)
        load_strictly(image)
        pixels = pixels_of(image, content, info.size)
        return eight_bits(pixels, rule), replace(info, outside=share_outside(pixels, rule))


def pixels_of(image: Image.Image, content: bytes, size: Size) -> np.ndarray:
    """(h, w, 3) RGB, or (h, w) grey, of a file of the size (h, w) opened by Pillow, with all its bits.

    OpenCV decodes it, but for a TIFF of 8 bits, whose colours it would multiply by alpha. DataError: the reason alone.
    """
    if sample_bits(image, content) > 8:
        return _deep_pixels(image, content, size)
    if image.format == "TIFF":
        return np.asarray(image.convert("RGB"))
    return decoded(content, size, str(image.format), DECODE_FLAGS_RGB)


def sample_bits(image: Image.Image, content: bytes) -> int:
    """Bits of a sample of a file that Pillow has opened, 8 where there are fewer; its own mode would hide 16 of RGB."""
    if image.format == "PNG":
        return max(8, content[_PNG_BITS])
    if image.format == "TIFF":
        return max(8, *image.tag_v2.get(_TIFF_BITS, (1,)))  # type: ignore[attr-defined]
    if image.format == "PPM":
        highest = image.tile[0][3]  # type: ignore[attr-defined]
        return 16 if isinstance(highest, tuple) and highest[-1] > 255 else 8
    return 8


def _deep_pixels(image: Image.Image, content: bytes, size: Size) -> np.ndarray:
    """(h, w, 3) RGB, or (h, w) grey, as stored, of a PNG, TIFF or PPM of more than 8 bits, without alpha."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, colours = {*tags.get(_TIFF_BITS, ())}, tags.get(_TIFF_PHOTOMETRIC)
        if not bits <= {16, 32} or colours not in (1, 2) or tags.get(_TIFF_PLANES, 1) != 1:
            raise DataError(
                f"a TIFF of {'/'.join(map(str, sorted(bits)))} bits in a form that is not read; {_DEEP_TIFFS}"
            )
    pixels = decoded(content, size, str(image.format), cv2.IMREAD_UNCHANGED)
    return pixels if pixels.ndim == 2 else pixels[..., 2::-1]  # (h, w, 3): BGR or BGRA is RGB


def encode_png(pixels: np.ndarray) -> bytes:
    """Pixels (h, w, 3) uint8 RGB, or (h, w) grey, as PNG."""
    ordered = pixels if pixels.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR)
    done, content = cv2.imencode(".png", ordered)
    if not done:
        raise DataError("OpenCV cannot write it as PNG")
    return content.tobytes()


def check_image(content: bytes) -> ImageInfo:
    """What is known of an image file that can be packed as it is, or re-encoded; DataError as packed_image."""
    return packed_image(content)[1]


def image_header(content: bytes) -> ImageInfo:
    """What the first bytes of an image tell; DataError with the reason alone if it is none that OpenCV reads, too.

    The orientation is that of JPEG files, 1 for others.
    """
    return _read(content, _READABLE, "image", load=False)


def file_header(path: Path) -> ImageInfo:
    """image_header of a file, of which as little as possible is read; OSError for one that cannot be read."""
    with open_regular(path) as file:
        content = file.read(_HEADER_BYTES)
        try:
            return image_header(content)
        except DataError:
            more = file.read()
            if not more:
                raise
            return image_header(content + more)


def file_suffix(content: bytes, own: str) -> str:
    """The suffix for a file of this content: its own one if that fits, else the usual one of its format."""
    fitting = _SUFFIXES_OF[_kind(content)]
    return own if own.lower() in fitting else fitting[0]


def record_header(content: bytes, where: str) -> ImageInfo:
    """image_header of the image in a record; DataError naming `where`."""
    try:
        return image_header(content)
    except DataError as error:
        raise DataError(f"{where}: the image cannot be decoded ({error}); replace it and pack again") from error


def _read(content: bytes, formats: tuple[str, ...], kind: str, *, load: bool) -> ImageInfo:
    """Header of an image, or with `load` all of it; DataError with the reason alone.

    Only pixels damage an image: what Pillow refuses is read once more without texts, profiles and the like.
    """
    try:
        return _read_as_is(content, formats, kind, load)
    except DataError:
        bare = without_metadata(content)
        if len(bare) == len(content):
            raise
        return _read_as_is(bare, formats, kind, load)


def _too_large(width: int, height: int) -> str:
    return f"{width} x {height} pixels, more than {MAX_PIXELS // 10**6} million; make it smaller or cut it into tiles"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 unless it is one of the numbers 2 to 8, and where the EXIF data cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _PILLOW_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def without_metadata(content: bytes) -> bytes:
    """A PNG without chunks that change no pixel, but EXIF; a JPEG without profiles and comments; others as they are.

    What is cut off or damaged stays as it is.
    """
    if content.startswith(PNG_SIGNATURE):
        return b"".join([PNG_SIGNATURE, *_pixel_chunks(content)])
    if not content.startswith(b"\xff\xd8"):
        return content
    parts, begin = [content[:2]], 2
    while begin + _SEGMENT.size <= len(content):
        fill, marker, length = _SEGMENT.unpack_from(content, begin)
        if fill != 0xFF or marker == _SCAN or length < 2:
            break
        if marker not in _METADATA:
            parts.append(content[begin : begin + 2 + length])
        begin += 2 + length
    return b"".join([*parts, content[begin:]])


def _pixel_chunks(content: bytes) -> Iterator[bytes]:
    begin = len(PNG_SIGNATURE)
    while begin < len(content):
        end = begin + 12 + int.from_bytes(content[begin : begin + 4], "big")
        if content[begin + 4 : begin + 8] in _PIXEL_CHUNKS:
            yield content[begin:end]
        begin = end


def _read_as_is(content: bytes, formats: tuple[str, ...], kind: str, load: bool) -> ImageInfo:
    if load:
        check_cost(content)
    with _opened(content, formats, kind) as image:
        exif_in_header = image.format in ("JPEG", "MPO")  # of a PNG it may come after the pixels
        info = _info(image, content, exif=load or exif_in_header)
        if load:
            refuse_several(image)
            load_strictly(image)
        return info


@contextmanager
def _opened(content: bytes, formats: tuple[str, ...], kind: str) -> Iterator[Image.Image]:
    """A file opened by Pillow; DataError with the reason alone for what it cannot read, here or in the block."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=formats) as image:
            if image.size[0] * image.size[1] > MAX_PIXELS:
                raise DataError(_too_large(*image.size))
            yield image
    except UnidentifiedImageError as error:
        raise DataError(unread_tiff(content) or f"damaged {kind}: its header cannot be read") from error
    except _PILLOW_ERRORS as error:
        raise DataError(f"damaged {kind}: {error}") from error


def unread_tiff(content: bytes) -> str:
    """What the tags of a TIFF say that Pillow does not open, such as one of floating-point colours; "" for what is none
    or has no tags that can be read."""
    if _SIGNATURES.get(content[:4]) != "TIFF":
        return ""
    stream = io.BytesIO(content)
    try:
        with warnings.catch_warnings(action="ignore"):
            tags = ImageFileDirectory_v2(content[:8])
            stream.seek(tags.next)
            tags.load(stream)
            bits, form, colours = (tags.get(tag) for tag in (_TIFF_BITS, _TIFF_SAMPLES, _TIFF_PHOTOMETRIC))
    except _PILLOW_ERRORS:
        return ""
    if not isinstance(bits, tuple) or not bits:
        return ""
    numbers = {2: "whole numbers with sign", 3: "floating-point numbers"}.get(form[0] if form else 1, "whole numbers")
    what = f"{len(bits)} channel{'s' * (len(bits) > 1)} of {bits[0]} bits, {numbers}" + (
        ", LogLuv" if colours == _LOG_LUV else ""
    )
    return f"a TIFF of {what}, is not read; {_DEEP_TIFFS}"


def _info(image: Image.Image, content: bytes, exif: bool) -> ImageInfo:
    """What the header tells; exif: whether to look for the orientation, which is 1 otherwise."""
    return ImageInfo((image.height, image.width), _orientation(image) if exif else 1, sample_bits(image, content))


def refuse_several(image: Image.Image) -> None:
    """DataError with the reason alone for a file that shows more than one picture, and a TIFF that is to be rotated."""
    if image.format == "TIFF" and image.tag_v2.next:  # type: ignore[attr-defined]
        raise DataError("a TIFF of several pages; save the page that is annotated as a file of its own")
    if image.format == "WEBP" and getattr(image, "n_frames", 1) > 1:
        raise DataError("an animated WEBP; save the picture that is annotated as a file of its own")
    turned = image.tag_v2.get(_ORIENTATION, 1) if image.format == "TIFF" else 1  # type: ignore[attr-defined]
    if turned != 1:
        raise DataError(
            f"a TIFF that asks to be rotated (tag Orientation {turned}), as libraries do or not; save it upright"
        )


def check_stream(content: bytes) -> ImageInfo:
    """Is a file a complete image, as far as its structure tells? A quick check, in some more formats.

    A JPEG needs an end marker after the start of its scan, the chunks of a PNG right checksums (ISO/IEC 15948 section
    5.3). JPEG without the marker and other formats are decoded. Refused with DataError, the reason alone: what is no
    image or not complete, more than 64 megapixels.
    """
    check_cost(content)
    size = _plain_jpeg_size(content)
    if size and size[0] * size[1] <= MAX_PIXELS:
        return ImageInfo(size, orientation=1)
    stream = io.BytesIO(content)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(stream, formats=_READABLE) as image:
            kind, begin, info = image.format, stream.tell(), _eight_bit_header(image, content)
    except UnidentifiedImageError as error:
        if len(without_metadata(content)) < len(content):
            return check_stream(without_metadata(content))
        raise DataError("not an image, or one with a damaged header" if content else "empty file") from error
    except _PILLOW_ERRORS as error:
        if len(without_metadata(content)) < len(content):
            return check_stream(without_metadata(content))
        raise DataError(f"damaged header: {error}") from error
    if kind == "PNG" and not _has_whole_chunks(content):
        raise DataError("damaged PNG: a checksum is wrong or the end is missing")
    if kind in ("JPEG", "MPO") and content.find(_END_OF_IMAGE, begin) < 0:
        return check_image(content)
    if kind not in ("JPEG", "MPO", "PNG"):
        decoded(content, info.size, str(kind))
    return info


def _eight_bit_header(image: Image.Image, content: bytes) -> ImageInfo:
    """What the header tells; DataError, the reason alone, for too many pixels, pages or bits."""
    info = _info(image, content, exif="exif" in image.info)
    if image.width * image.height > MAX_PIXELS:
        raise DataError(_too_large(*image.size))
    refuse_several(image)
    if info.bits > 8:
        raise DataError(too_deep(_deep_pixels(image, content, info.size)))
    return info


def _plain_jpeg_size(content: bytes) -> Size | None:
    """(height, width) of a usual JPEG without EXIF that ends with its end marker; None for all others: ask Pillow.

    A tenth of the time that Pillow takes for it.
    """
    size, begin = None, 2
    if not content.startswith(b"\xff\xd8") or not content.endswith(_END_OF_IMAGE):
        return None
    while begin + _SEGMENT.size + _FRAME.size <= len(content):
        fill, marker, length = _SEGMENT.unpack_from(content, begin)
        if fill != 0xFF or marker not in _PLAIN or length < 2:
            return None
        if marker == _QUANTISATION and not _has_byte_tables(content[begin + _SEGMENT.size : begin + 2 + length]):
            return None
        if marker in _FRAMES:
            bits, height, width, components = _FRAME.unpack_from(content, begin + _SEGMENT.size)
            if size or bits != 8 or components not in (1, 3) or length != 8 + 3 * components or not height * width:
                return None
            size = (height, width)
        begin += 2 + length
        if marker == _SCAN:
            return size if begin <= len(content) - len(_END_OF_IMAGE) else None
    return None


def _has_byte_tables(segment: bytes) -> bool:
    """Whether quantisation tables have 8 bits: each is a byte with its number and 64 values (T.81 section B.2.4.1)."""
    return len(segment) % 65 == 0 and max(segment[::65], default=0) < 16


def _has_whole_chunks(content: bytes) -> bool:
    """Whether a PNG is a chain of chunks (length, type, data, CRC of type and data) that ends with IEND."""
    begin, kind, view = len(PNG_SIGNATURE), b"", memoryview(content)
    while kind != b"IEND":
        end = begin + 8 + int.from_bytes(view[begin : begin + 4], "big")
        if end + 4 > len(content) or zlib.crc32(view[begin + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return False
        kind, begin = content[begin + 4 : begin + 8], end + 4
    return True


def decoded(content: bytes, size: Size, kind: str, flags: int = DECODE_FLAGS) -> np.ndarray:
    """The pixels as OpenCV decodes them; DataError with the reason alone where they are not of the size (h, w)."""
    check_cost(content, inflate=False)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"OpenCV cannot decode this {kind}: {error.err}") from error
    if pixels is None or pixels.shape[:2] != size:
        raise DataError(f"OpenCV cannot decode this {kind}")
    return pixels


def load_strictly(image: Image.Image) -> None:
    """Decodes a Pillow image; OSError where it is cut off.

    Importing gluoncv tells Pillow, for the whole process, to fill what is missing with grey.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    image.load()
