"""Detects with the model.onnx of a deployed folder, onnxruntime and Pillow alone: pip install onnxruntime pillow.

python detect_onnxruntime.py FOLDER IMAGE [LOWEST_SCORE]
A folder with a bit_depth, for images of more than 8 bits, needs opencv-python-headless as well.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `new` pixels the two of `old` that it lies between, and the second one's share of 2048."""
    place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    low = place.astype(int)
    return low, np.minimum(low + 1, old - 1), np.rint((place - low) * 2048).astype(int)[:, None]


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels (h, w, 3) stretched: bilinear without a low-pass, in the fixed-point numbers of OpenCV's resize."""
    (y, below, down), (x, beside, right) = neighbours(pixels.shape[0], height), neighbours(pixels.shape[1], width)
    rows = (pixels[:, x] * (2048 - right) + pixels[:, beside] * right) >> 4
    down = down[:, None]
    return ((((rows[y] * (2048 - down)) >> 16) + ((rows[below] * down) >> 16) + 2) >> 2).astype(np.uint8)


def eight_bits(pixels: np.ndarray, rule: str) -> np.ndarray:
    """Pixels as uint8 by the bit_depth of a manifest: window:LOW,HIGH or percentile:P,Q."""
    kind, _, ends = rule.partition(":")
    low, high = map(float, ends.split(","))
    if kind == "percentile":
        low, high = map(float, np.percentile(pixels, (low, high), method="inverted_cdf"))
    elif pixels.dtype == np.uint8:
        sys.exit(f"the image has 8 bits, and {rule} is of images with more")
    return np.clip(np.rint((pixels.astype(float) - low) * (255 / max(high - low, 1e-30))), 0, 255).astype(np.uint8)


def deep_image(path: str, rule: str) -> np.ndarray:
    """RGB (h, w, 3) uint8 of an image of a model with a bit_depth."""
    import cv2  # noqa: TID251 - without the project

    pixels = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if pixels is None or cv2.imcount(path) > 1 or not np.isfinite(pixels).all():
        sys.exit(f"{path}: OpenCV cannot read it, or it has several pages or numbers that are not finite")
    mapped = eight_bits(pixels if pixels.ndim == 2 else pixels[..., 2::-1], rule)  # BGR, perhaps with alpha, or grey
    return mapped if mapped.ndim == 3 else np.stack([mapped] * 3, axis=2)


def refuse_more_bits(path: str) -> None:
    """Ends with a sentence for a file that has, or may have, more than 8 bits, of which the upper 8 would be read."""
    with open(path, "rb") as file:
        head = file.read(25)
    if head[:4] == b"\x89PNG" and head[24:] > b"\x08":
        sys.exit(f"{path}: has more than 8 bits, and the model was trained on 8")
    if head[:4] in (b"II*\0", b"MM\0*"):
        sys.exit(f"{path}: TIFF may have more than 8 bits, and the model was trained on 8; save it as PNG")


if len(sys.argv) < 3:
    print("usage: python detect_onnxruntime.py FOLDER IMAGE [LOWEST_SCORE]", file=sys.stderr)
    sys.exit(2)
folder, path = sys.argv[1], sys.argv[2]
with open(f"{folder}/manifest.json", encoding="utf-8") as file:
    manifest = json.load(file)
own = manifest.get("thresholds", {})  # by class, where the model has any
lowest = np.float32([float((sys.argv[3:] or [own.get(name, 0.5)])[0]) for name in manifest["class_names"]])
height, width = manifest["input_shape"]
if manifest.get("bit_depth"):
    image = deep_image(path, manifest["bit_depth"])
else:
    refuse_more_bits(path)
    image = np.asarray(Image.open(path).convert("RGB"))
h, w = image.shape[:2]
scale = min(height / h, width / w)
fitted = max(1, round(h * scale)), max(1, round(w * scale))
inner_h, inner_w = fitted if manifest["resize_mode"] == "letterbox" else (height, width)  # what the image covers
top, left = round((height - inner_h) / 2 - 0.1), round((width - inner_w) / 2 - 0.1)
data = np.full((height, width, 3), manifest["fill"], np.uint8)
data[top : top + inner_h, left : left + inner_w] = resize(image, inner_h, inner_w)
if manifest.get("input_format") != "uint8_nhwc":
    data = ((data - np.float32(manifest["mean"])) / np.float32(manifest["std"])).transpose(2, 0, 1)
network = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
batch = network.get_inputs()[0].shape[0]  # an int where model.onnx was written for that many images
det = network.run(["det"], {"data": np.repeat(data[None], batch if isinstance(batch, int) else 1, axis=0)})[0][0]
det = det[(det[:, 0] >= 0) & (det[:, 1] >= lowest[det[:, 0].astype(int)])]  # id, score, corners in 0..1 of the input
det = det[np.argsort(-det[:, 1], kind="stable")]
boxes = (det[:, 2:] * ([width, height] * 2) - [left, top] * 2) / ([inner_w / w, inner_h / h] * 2)
boxes = np.clip(boxes, 0, [w, h] * 2)
seen = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # not in the border
for (number, score), box in zip(det[seen, :2], boxes[seen], strict=True):
    print(f"{manifest['class_names'][int(number)]} {score:.4f}", *(f"{value:.2f}" for value in box))
if not seen.any():
    print(f"{path}: nothing above {lowest.min():g}")
