"""Images as the network reads them: decoded, checked, resized and normalised exactly as in validation."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import DataError
from common.files import open_regular
from common.sizes import Size
from dataset.augment import STRETCHED, resize_only
from dataset.image_check import (
    FORMATS,
    IMAGE_SUFFIXES,
    MAX_BYTES,
    load_strictly,
    pixels_of,
    refuse_several,
    unread_tiff,
)
from dataset.image_cost import check_cost
from dataset.labels import OBJECT_WIDTH
from dataset.letterbox import Resize
from dataset.transforms import eight_bits
from machine.opencv import MAX_PIXELS, cv2
from model.manifest import UINT8_NHWC, Manifest

SUFFIXES = frozenset(IMAGE_SUFFIXES)
_VALUES = np.arange(256, dtype=np.float32)
_NO_OBJECTS = np.zeros((0, OBJECT_WIDTH), np.float32)

ImageInput = str | Path | bytes | bytearray | memoryview | np.ndarray


def read_image(image: ImageInput, name: str, bit_depth: str = "") -> np.ndarray:
    """A path, an encoded image or pixels as (h, w, 3) uint8 RGB; arrays of uint8 are returned as they are.

    bit_depth: the model's rule of --bit-depth, by which more than 8 bits become 8, of files and of arrays, whose shape
    is then (h, w, 3) or (h, w). Without one they are refused, and so are 8 bits where it is a window: nothing tells
    whether they are mapped already. A percentile is of 8 bits, too, and leaves what it has mapped as it is.

    EXIF orientation is ignored, as in training. DataError naming the file, or `name`, if it cannot be read, is damaged
    or cut off, has more than MAX_PIXELS pixels (seen before it is decoded), or is an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        return _checked_pixels(image, name, bit_depth)
    if isinstance(image, (str, Path)):
        return _decoded(_read_file(Path(image)), str(image), bit_depth)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decoded(bytes(image), name, bit_depth)
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
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES >> 20} MB; make a smaller image of it")
        return content
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _decoded(content: bytes, name: str, bit_depth: str) -> np.ndarray:
    """Pillow reads the size first, then decodes at a low resolution: OpenCV would take half a JPEG for a whole one."""
    try:
        check_cost(content)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            size = (image.height, image.width)
            _check_size(*size)
            image.draft("RGB", (1, 1))
            refuse_several(image)
            load_strictly(image)
            return _three_channels(eight_bits(pixels_of(image, content, size), bit_depth))
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        is_unknown = isinstance(error, Image.UnidentifiedImageError)
        if is_unknown and (form := unread_tiff(content)):
            raise DataError(f"{name}: {form}") from error
        reason = "its format is unknown" if is_unknown else str(error)
        raise DataError(f"{name}: not a sound image ({reason}); give a whole {', '.join(FORMATS)}") from error
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _checked_pixels(pixels: np.ndarray, name: str, bit_depth: str) -> np.ndarray:
    """An array as it is or, of more than 8 bits or with a bit depth, as eight_bits makes it."""
    is_number, is_grey = pixels.dtype.kind in "uif", pixels.ndim == 2 and pixels.dtype != np.uint8
    if not is_number or not (is_grey or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise DataError(
            f"{name}: expected pixels (height, width, 3) uint8 RGB, or of more bits, not {pixels.shape} {pixels.dtype}"
        )
    try:
        _check_size(pixels.shape[0], pixels.shape[1])
        return _three_channels(eight_bits(pixels, bit_depth))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _three_channels(pixels: np.ndarray) -> np.ndarray:
    """(h, w, 3) of (h, w, 3), or of grey (h, w)."""
    return pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)


def _check_size(height: int, width: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise DataError(f"{width} x {height} pixels, at most {MAX_PIXELS // 10**6} million are read")
