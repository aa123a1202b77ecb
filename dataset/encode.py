"""Image files as im2rec stores them: as they are, or cropped, resized and encoded anew, with the bytes of mxnet's."""

from dataclasses import dataclass

import numpy as np

from common.errors import DataError
from dataset.image_check import MAX_PIXELS, ImageInfo, check_stream
from machine.opencv import cv2

DEFAULT_QUALITY = {".jpg": 95, ".png": 9}  # mxnet asks for 95 with either; OpenCV takes it as 9 for PNG
_QUALITY_FLAG = {".jpg": cv2.IMWRITE_JPEG_QUALITY, ".png": cv2.IMWRITE_PNG_COMPRESSION}


@dataclass(frozen=True)
class Encoder:
    """What becomes of an image file.

    Attributes:
        pass_through: nothing; the rest does not count.
        center_crop: the square in its middle is cut out.
        resize: then its shorter edge gets this length in pixels; 0 = no.
        color: 1 = BGR, 0 = grey, -1 = as stored.
        encoding: .jpg or .png.
        quality: of JPEG 1 to 100, compression of PNG 1 to 9.
    """

    pass_through: bool = False
    center_crop: bool = False
    resize: int = 0
    color: int = 1
    encoding: str = ".jpg"
    quality: int = 95

    def __call__(self, content: bytes) -> tuple[bytes, ImageInfo]:
        """(bytes to store, what is known of the file); DataError, the reason alone, for what is no whole image.

        The EXIF orientation is ignored: labels refer to the pixels as stored. Files passed through are checked for
        completeness, not decoded.
        """
        info = check_stream(content)
        if self.pass_through:
            return content, info
        try:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), self.color | cv2.IMREAD_IGNORE_ORIENTATION)
            if pixels is None or pixels.shape[:2] != info.size:
                raise DataError("OpenCV cannot decode it")
            return self._encode(self._resize(crop_square(pixels) if self.center_crop else pixels)), info
        except cv2.error as error:
            raise DataError(f"OpenCV cannot convert it: {error.err}") from error

    def _resize(self, pixels: np.ndarray) -> np.ndarray:
        if not self.resize:
            return pixels
        height, width = pixels.shape[:2]
        shorter = min(height, width)
        height, width = height * self.resize // shorter, width * self.resize // shorter
        if height * width > MAX_PIXELS:
            raise DataError(f"resized to {width} x {height} it has more than {MAX_PIXELS // 10**6} million pixels")
        return cv2.resize(pixels, (width, height))

    def _encode(self, pixels: np.ndarray) -> bytes:
        done, content = cv2.imencode(self.encoding, pixels, [_QUALITY_FLAG[self.encoding], self.quality])
        if not done:
            raise DataError(f"OpenCV cannot encode it as {self.encoding}")
        return content.tobytes()


def crop_square(pixels: np.ndarray) -> np.ndarray:
    """The square in the middle of an image (h, w, ...), with side min(h, w)."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]
