"""Detects with a deployed folder and mxnet alone: python detect_mxnet.py FOLDER IMAGE [LOWEST_SCORE].

pip install mxnet==1.9.1 numpy==1.26.4 (Python 3.12: also "setuptools<81"). int8 and bfloat16 folders run in float32.
"""

import builtins
import json
import sys

import numpy as np

for name in ("bool", "int", "float", "complex", "object", "str"):  # mxnet uses them, numpy has them no longer
    vars(np).setdefault(name, getattr(builtins, name))
import mxnet as mx  # noqa: E402, TID251 - without the project

if len(sys.argv) < 3:
    print("usage: python detect_mxnet.py FOLDER IMAGE [LOWEST_SCORE]", file=sys.stderr)
    sys.exit(2)
folder, path, lowest = sys.argv[1], sys.argv[2], float((sys.argv[3:] or [0.5])[0])
with open(f"{folder}/manifest.json", encoding="utf-8") as file:
    manifest = json.load(file)
height, width = manifest["input_shape"]
image = mx.image.imread(path, flag=1 | 128)  # RGB; 128: EXIF orientation is ignored
h, w = image.shape[:2]
scale = min(height / h, width / w)
fitted = max(1, round(h * scale)), max(1, round(w * scale))
inner_h, inner_w = fitted if manifest["resize_mode"] == "letterbox" else (height, width)  # what the image covers
top, left = round((height - inner_h) / 2 - 0.1), round((width - inner_w) / 2 - 0.1)
data = np.full((height, width, 3), manifest["fill"], np.uint8)
data[top : top + inner_h, left : left + inner_w] = mx.image.imresize(image, inner_w, inner_h, interp=1).asnumpy()
if manifest.get("input_format") != "uint8_nhwc":
    data = ((data - np.float32(manifest["mean"])) / np.float32(manifest["std"])).transpose(2, 0, 1)
symbol, arg_params, aux_params = mx.model.load_checkpoint(f"{folder}/model", 0)
network = symbol.simple_bind(mx.cpu(), "null", {"data": data.dtype}, data=(1, *data.shape))
network.copy_params_from(arg_params, aux_params)
det = network.forward(data=mx.nd.array(data[None], dtype=data.dtype))[0].asnumpy()[0]
det = det[(det[:, 0] >= 0) & (det[:, 1] >= lowest)]  # id, score, corners from 0 to 1 of the input
det = det[np.argsort(-det[:, 1], kind="stable")]
boxes = (det[:, 2:] * ([width, height] * 2) - [left, top] * 2) / ([inner_w / w, inner_h / h] * 2)
boxes = np.clip(boxes, 0, [w, h] * 2)
seen = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # not in the border
for (number, score), box in zip(det[seen, :2], boxes[seen], strict=True):
    print(f"{manifest['class_names'][int(number)]} {score:.4f}", *(f"{value:.2f}" for value in box))
if not seen.any():
    print(f"{path}: nothing above {lowest:g}")
