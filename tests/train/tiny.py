"""A tiny detection problem: coloured rectangles on noise, and a narrow MobileNet SSD quick to train on them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.files import file_sha256
from config.options import to_mapping
from dataset.labels import pack_label
from dataset.recordio import RecordWriter, pack
from dataset.sidecar import Sidecar, write_sidecar
from machine.opencv import cv2
from train.options import TrainOptions, train_options

CLASSES = ("red", "green", "blue")
SIDE = 96
TRAIN, VAL = 22, 10  # 22 images in batches of 8: the last one has padding rows
BATCH = 8


def objects_of(rng: np.random.Generator, classes: int, most: int = 3) -> np.ndarray:
    """(n, 6) random boxes, at least one."""
    count = int(rng.integers(1, most + 1))
    low = rng.uniform(0, 0.6, (count, 2))
    high = np.minimum(low + rng.uniform(0.2, 0.5, (count, 2)), 1)
    return np.column_stack([rng.integers(0, classes, count), low, high, np.zeros(count)]).astype(np.float32)


def draw(objects: np.ndarray, rng: np.random.Generator, shape: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    image = rng.integers(90, 160, (*shape, 3), dtype=np.uint8)
    for number, *box, _ in objects:
        xmin, ymin, xmax, ymax = (round(float(v) * side) for v, side in zip(box, shape[::-1] * 2, strict=True))
        image[ymin:ymax, xmin:xmax] = 20
        image[ymin:ymax, xmin:xmax, 2 - int(number)] = 230
    return cv2.imencode(".png", image)[1].tobytes()


def write_record(
    path: Path,
    count: int,
    seed: int = 0,
    *,
    empty: bool = False,
    names: tuple[str, ...] | None = CLASSES,
    classes: int = len(CLASSES),
    shapes: Sequence[tuple[int, int]] = ((SIDE, SIDE),),
) -> str:
    """A record of `count` images, without objects if empty; names None = no sidecar; image k has shapes[k % n]."""
    rng = np.random.default_rng(seed)
    labels = [objects_of(rng, classes)[: 0 if empty else None] for _ in range(count)]
    with RecordWriter(path) as writer:
        for index, objects in enumerate(labels):
            writer.write(index, pack(pack_label(objects), draw(objects, rng, shapes[index % len(shapes)]), index))
    if names:
        per_class = [int(sum((rows[:, 0] == k).sum() for rows in labels)) for k in range(len(names))]
        widest = max(map(len, labels))
        sidecar = Sidecar(
            class_names=names,
            num_images=count,
            num_objects=sum(per_class),
            max_objects=widest,
            objects_per_class=tuple(per_class),
            label_width=2 + 6 * widest,
            source="test",
            sha256=file_sha256(path),
            size=path.stat().st_size,
            tool_version="test",
        )
        write_sidecar(path, sidecar)
    return str(path)


NETWORK = {
    "network": "mobilenet",
    "width": 0.125,
    "data_shape": (64,),
    "taps": ("conv_6_relu", "conv_12_relu"),
    "extra_filters": (),
    "anchor_sizes": "0.2,0.3;0.4,0.6",
    "anchor_ratios": "1,2,0.5",
}


def flags(options: TrainOptions) -> list[str]:
    """The command line of options: those that differ from the defaults."""
    words = []
    for name, value in to_mapping(options).items():
        if value != to_mapping(train_options())[name]:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(f"--{name.replace('_', '-')}={text}")
    return words


def metrics(prefix: str) -> list[dict]:
    """The lines of metrics.jsonl without the times."""
    lines = [json.loads(line) for line in Path(f"{prefix}-metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]
