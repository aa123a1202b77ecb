"""Heat maps: how sure a model is of finding something at each pixel, over all of its boxes."""

import numpy as np

from machine.opencv import cv2

HIGHEST_SCORE = 1 - 1e-6  # log(1 - score) stays finite
HEAT_SHARE = 0.5  # of the colours in the picture


def score_map(detections: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) float32 in [0, 1]: 1 - prod(1 - score) over the boxes on each pixel, 0 where there is none.

    That is the probability that one of the boxes is right, if they were independent; under a single box it is its
    score. detections: (n, 6) rows [id, score, xmin, ymin, xmax, ymax] in pixels of an image of size (h, w); a box
    covers the pixels that its rounded edges enclose, one at least.
    """
    height, width = size
    doubt = -np.log1p(-np.clip(detections[:, 1].astype(np.float64), 0, HIGHEST_SCORE))  # of a product the sum
    low = np.clip(np.rint(detections[:, 2:4]).astype(int), 0, [width - 1, height - 1])
    high = np.clip(np.rint(detections[:, 4:6]).astype(int), low + 1, [width, height])
    change = np.zeros((height + 1, width + 1))  # its sums along both axes are the sums over the boxes
    for x, y, sign in ((low, low, 1), (high, low, -1), (low, high, -1), (high, high, 1)):
        np.add.at(change, (y[:, 1], x[:, 0]), sign * doubt)
    total = change.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
    return -np.expm1(-np.maximum(total, 0)).astype(np.float32)


def draw_heatmap(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """A copy of an image (h, w, 3) uint8 RGB, half of it the colours of scores (h, w): blue is 0, red is 1."""
    colours = cv2.applyColorMap(np.rint(scores * 255).astype(np.uint8), cv2.COLORMAP_JET)[:, :, ::-1]  # of BGR
    return np.rint(image * (1 - HEAT_SHARE) + colours * HEAT_SHARE).astype(np.uint8)
