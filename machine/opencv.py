"""The only import of OpenCV: `from machine.opencv import cv2`.

OpenCV runs without threads of its own: images are the unit of parallel work (one worker process each), and its pool
would compete with MXNet's threads.
"""

import os
from types import ModuleType

from common.errors import InstallError, named_library

__all__ = ["MAX_PIXELS", "cv2"]
MAX_PIXELS = 64_000_000  # of an image; a decompression bomb is refused by its header


def _import_cv2() -> ModuleType:
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # who reads an image reports a damaged one, by its name
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # the same for videos: quiet
    try:
        import cv2 as module
    except ImportError as error:
        raise InstallError(_reason(error)) from error
    module.setNumThreads(0)
    return module


def _reason(error: ImportError) -> str:
    if error.name == "cv2" and isinstance(error, ModuleNotFoundError):
        return "OpenCV is not installed: pip install opencv-python==4.11.0.86"
    library = named_library(error)
    if library is None:
        return f"OpenCV cannot be loaded ({error}): pip install --force-reinstall opencv-python==4.11.0.86"
    return (
        f"OpenCV needs the system library {library}: apt-get install libgl1 libglib2.0-0, "
        "or without root: pip uninstall opencv-python && pip install opencv-python-headless==4.11.0.86"
    )


cv2 = _import_cv2()
