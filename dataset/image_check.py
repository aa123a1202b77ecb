"""Is an encoded image whole? Training decodes with OpenCV, which takes half a JPEG for one with a grey lower half.

Images are never rotated: EXIF orientation is ignored when packing and when training, and annotations refer to the
pixels as stored (cv2.IMREAD_IGNORE_ORIENTATION).
"""

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from config.errors import DataError
from config.opencv import cv2

MAX_PIXELS = 64_000_000  # a decompression bomb is refused by its header
MAX_BYTES = 256 << 20
DECODE_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
_SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright, 5 to 8 exchange height and width


@dataclass(frozen=True)
class ImageInfo:
    """size (height, width) as stored, EXIF orientation 1..8."""

    size: tuple[int, int]
    orientation: int


def check_image(content: bytes) -> ImageInfo:
    """Decodes a JPEG or PNG completely; whatever is wrong with it raises DataError with the reason alone.

    Refused: other formats, more than 64 megapixels (before decoding), a cut-off or undecodable stream.
    """
    kind = next((name for signature, name in _SIGNATURES.items() if content.startswith(signature)), None)
    if not content or kind is None:
        raise DataError("neither JPEG nor PNG" if content else "empty file")
    info = _read(content, [kind], kind, load=True)
    _decode(content, info.size, kind)
    return info


def image_header(content: bytes) -> ImageInfo:
    """What the first bytes of an image of any format tell; DataError with the reason alone if it is none.

    The orientation is that of JPEG files, 1 for others.
    """
    return _read(content, None, "image", load=False)


def _read(content: bytes, formats: list[str] | None, kind: str, *, load: bool) -> ImageInfo:
    """Header of an image, or with `load` all of it; DataError with the reason alone."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=formats) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{width} x {height} pixels, more than {MAX_PIXELS // 10**6} million")
            exif_in_header = image.format in ("JPEG", "MPO")  # of a PNG it may come after the pixels
            orientation = int(image.getexif().get(_ORIENTATION, 1)) if load or exif_in_header else 1
            if load:
                image.load()
    except UnidentifiedImageError as error:
        raise DataError(f"damaged {kind}: its header cannot be read") from error
    except (OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"damaged {kind}: {error}") from error
    return ImageInfo((height, width), orientation)


def _decode(content: bytes, size: tuple[int, int], kind: str) -> None:
    """Decodes as training does."""
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), DECODE_FLAGS)
    except cv2.error as error:
        raise DataError(f"OpenCV cannot decode this {kind}: {error}") from error
    if pixels is None or pixels.shape[:2] != size:
        raise DataError(f"OpenCV cannot decode this {kind}")
