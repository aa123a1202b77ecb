"""Where images lie in a network input: frames (n, 6), rows [height, width, scale x, scale y, offset x, offset y].

A coordinate in pixels of the image is the one normalised to the input times the scale plus the offset.
"""

import numpy as np


def frames_of(geometry: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames (n, 6) float64 from a batch's geometry (n, 6) [h, w, scale y, x, offset y, x] in an input (H, W)."""
    geometry = geometry.astype(np.float64)
    scale, offset = geometry[:, [3, 2]], geometry[:, [5, 4]]
    return np.concatenate([geometry[:, :2], np.array(size[::-1]) / scale, -offset / scale], axis=1)


def to_image_pixels(boxes: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Corners (n, 4) normalised to the input -> corners in pixels of the images, clipped to them."""
    scale, offset = np.tile(frames[:, 2:4], 2), np.tile(frames[:, 4:6], 2)
    return np.clip(boxes * scale + offset, 0, np.tile(frames[:, [1, 0]], 2))
