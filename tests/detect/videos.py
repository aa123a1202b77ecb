"""Video files and cameras for tests."""

import numpy as np

from machine.opencv import cv2
from tests.model.tiny import picture


def write_video(path, frames=6, size=(48, 64), rate=10.0):
    """A film of pictures; each is what picture(seed, *size) draws."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, size[::-1])
    for seed in range(frames):
        writer.write(picture(seed, *size)[:, :, ::-1])
    writer.release()
    return path


class FakeCapture:
    """A camera with pictures (h, w, 3) BGR; an exception in their place is raised."""

    def __init__(self, pictures, opened=True):
        self.pictures, self.opened, self.released = list(pictures), opened, False

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return self.opened

    def read(self):
        if not self.pictures:
            return False, None
        first = self.pictures.pop(0)
        if isinstance(first, BaseException):
            raise first
        return True, first

    def get(self, number):
        return {cv2.CAP_PROP_FPS: 0.0}.get(number, -1.0)

    def set(self, number, value):
        return True

    def release(self):
        self.released = True


def bgr(seed, size=(48, 64)):
    return np.ascontiguousarray(picture(seed, *size)[:, :, ::-1])
