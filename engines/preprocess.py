"""Images as the network reads them: decoded, checked, resized and normalised exactly as in validation."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.errors import DataError
from common.sizes import Size
from dataset.augment import STRETCHED, resize_only
from dataset.image_check import MAX_BYTES, load_strictly
from dataset.labels import OBJECT_WIDTH
from dataset.letterbox import Resize
from dataset.transforms import decode
from machine.opencv import MAX_PIXELS, cv2
from model.manifest import UINT8_NHWC, Manifest

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_VALUES = np.arange(256, dtype=np.float32)
_NO_OBJECTS = np.zeros((0, OBJECT_WIDTH), np.float32)

ImageInput = str | Path | bytes | bytearray | memoryview | np.ndarray


def read_image(image: ImageInput, name: str) -> np.ndarray:
    """A path, an encoded image or pixels as (h, w, 3) uint8 RGB; arrays are returned as they are.

    EXIF orientation is ignored, as in training. DataError naming the file, or `name`, if it cannot be read, is damaged
    or cut off, has more than MAX_PIXELS pixels (seen before it is decoded), or is an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        return _checked_pixels(image, name)
    if isinstance(image, (str, Path)):
        return _decoded(_read_file(Path(image)), str(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decoded(bytes(image), name)
    raise DataError(f"{name}: an image is a path, its encoded bytes or an array, not {type(image).__name__}")


class InputWriter:
    """Turns pictures into the input of a model, in the format that its manifest says.

    float32_nchw: (B, 3, H, W) float32 RGB, normalised; uint8_nhwc: (B, H, W, 3) uint8 RGB, which the network
    normalises by itself.
    """

    def __init__(self, manifest: Manifest) -> None:
        """The manifest of the model."""
        self._size = manifest.size
        self._bytes = manifest.input_format == UINT8_NHWC
        self._mean, self._std = (np.array(x, np.float32) for x in (manifest.mean, manifest.std))
        self._resize = Resize(manifest.resize_mode, manifest.fill)

    def batch(self, pictures: int, batch_size: int) -> np.ndarray:
        """An input whose first rows wait for pictures; the others are zero."""
        shape = (*self._size, 3) if self._bytes else (3, *self._size)
        data = np.empty((batch_size, *shape), np.uint8 if self._bytes else np.float32)
        data[pictures:] = 0
        return data

    def write(self, pixels: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Writes pixels (h, w, 3) uint8 RGB to a row of a batch; returns the geometry (6,) that to_image needs."""
        if self._bytes:
            row[...], _, view = resize_only(np.ascontiguousarray(pixels), _NO_OBJECTS, self._size, self._resize)
            return view
        return write_input(pixels, self._mean, self._std, row, self._resize)

    def noise(self, batch_size: int) -> np.ndarray:
        """A batch of random pixels, always the same ones."""
        pixels = np.random.default_rng(0).integers(0, 256, (batch_size, *self._size, 3), np.uint8)
        data = self.batch(batch_size, batch_size)
        for picture, row in zip(pixels, data, strict=True):
            self.write(picture, row)
        return data


def write_input(
    pixels: np.ndarray, mean: np.ndarray, std: np.ndarray, out: np.ndarray, resize: Resize = STRETCHED
) -> np.ndarray:
    """Writes pixels (h, w, 3) uint8 RGB, resized bilinearly to (H, W), less mean, over std (3,), to out (3, H, W).

    Bit for bit what dataset.transforms.normalise gives. Returns the geometry (6,) that dataset.transforms.to_image
    needs.
    """
    size: Size = (out.shape[1], out.shape[2])
    resized, _, view = resize_only(np.ascontiguousarray(pixels), _NO_OBJECTS, size, resize)
    tables = (_VALUES - mean[:, None]) / std[:, None]  # (3, 256): the normalised value of each value of R, G and B
    for plane, table, target in zip(cv2.split(resized), tables, out, strict=True):
        cv2.LUT(plane, table, dst=target)
    return view


def encode_image(pixels: np.ndarray, suffix: str) -> bytes:
    """Pixels (h, w, 3) uint8 RGB in the format of a suffix of SUFFIXES."""
    done, content = cv2.imencode(suffix, cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR))
    if not done:
        raise DataError(f"OpenCV cannot write {suffix} images")
    return content.tobytes()


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES >> 20} MB; make a smaller image of it")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _decoded(content: bytes, name: str) -> np.ndarray:
    """Pillow reads the size first, then decodes at a low resolution: OpenCV would take half a JPEG for a whole one."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(image.size[1], image.size[0], name)
            image.draft("RGB", (1, 1))
            load_strictly(image)
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        reason = "its format is unknown" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise DataError(f"{name}: not a sound image ({reason}); give a whole {', '.join(FORMATS)}") from error
    return decode(content, name, rgb=True)


def _checked_pixels(pixels: Any, name: str) -> np.ndarray:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise DataError(f"{name}: expected pixels (height, width, 3) uint8 RGB, not {pixels.shape} {pixels.dtype}")
    _check_size(pixels.shape[0], pixels.shape[1], name)
    return pixels


def _check_size(height: int, width: int, name: str) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise DataError(f"{name}: {width} x {height} pixels, at most {MAX_PIXELS // 10**6} million are read")
