"""Fits anchors to the objects of a record: for YOLOv3 in pixels of the input, for SSD sizes and ratios of each map.

python -m tools.anchors --train-path data/train.rec --network yolov3_spp --data-shape 416 --output my.yaml \\
    --picture anchors.png
"""

import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    importlib.import_module("as_module")

import numpy as np
import yaml

from boxes.anchor_fit import Coverage, best_iou, coverage
from common.errors import DataError, OptionError
from common.files import write_atomically
from common.sizes import Size
from config.anchors_options import AnchorsOptions
from config.command_line import parse_options
from config.options import from_mapping
from config.preset import read_preset
from dataset.letterbox import Resize
from dataset.record_source import object_boxes
from dataset.sidecar import read_sidecar
from machine.command import run_command
from tools.anchor_picture import save_picture
from tools.anchor_targets import Family, family_of, pixel_sizes
from train.options import TrainOptions, train_options_class

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Objects:
    """Objects of a record: corner boxes (n, 4) normalised to the input, sizes (n, 2) in its pixels, images."""

    boxes: np.ndarray
    sizes: np.ndarray
    images: int


def main(argv: list[str]) -> None:
    """Fits anchors, prints how well they cover the objects before and after, and writes preset and picture."""
    options = parse_options(AnchorsOptions, argv, "Fits a network's anchors to the objects of a record.")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    values = preset_values(options)
    run = from_mapping(train_options_class(), values)
    family = family_of(run)
    objects = _objects(options, run, family.size)
    fitted = family.fit(_drawn(objects.boxes, options), options.generations, options.seed)
    threshold = family.threshold if options.threshold is None else options.threshold
    lines = report(family, fitted, objects, threshold)
    print("\n".join(lines))
    if options.output:
        values |= fitted.options()
        _write(Path(options.output), preset_text(values, argv, lines).encode("utf-8"))
        read_preset(train_options_class(), options.output)
        print(f"{options.output} written; train with --config {options.output}")
    if options.picture:
        _make_folder(Path(options.picture))
        save_picture(Path(options.picture), objects.sizes, family.anchors(), fitted.anchors())
        print(f"{options.picture} written")


def preset_values(options: AnchorsOptions) -> dict[str, Any]:
    """{option: value} of the preset, with the options given here in place of its own."""
    values = read_preset(train_options_class(), options.preset, "--preset") if options.preset else {}
    for name in ("network", "data_shape", "resize_mode"):
        value = getattr(options, name)
        if value is not None:
            values[name] = list(value) if isinstance(value, tuple) else value
    return values


def report(family: Family, fitted: Family, objects: Objects, threshold: float) -> list[str]:
    """Lines for the user: coverage before and after, the anchors found as the options of train.py."""
    mode = f"{family.size[0]},{family.size[1]} ({family.resize_mode})"
    head = f"{len(objects.sizes)} objects in {objects.images} images, input {mode}, {len(fitted.anchors())} anchors"
    lines = [head, f"{'':<22}best possible recall (IoU > {threshold:g})  mean best IoU"]
    for name, one in (("before", family), ("after", fitted)):
        lines.append(_row(f"{name}, sizes alone", coverage(best_iou(objects.sizes, one.anchors()), threshold)))
    for name, one in (("before", family), ("after", fitted)):
        placed = one.placed_iou(objects.boxes)
        if placed is not None:
            lines.append(_row(f"{name}, at their places", coverage(placed, threshold)))
    return [*lines, *(f'--{name.replace("_", "-")} "{value}"' for name, value in fitted.options().items())]


def _row(name: str, found: Coverage) -> str:
    return f"{name:<22}{found.recall:>30.4f}{found.mean_iou:>21.4f}"


def preset_text(values: dict[str, Any], argv: Sequence[str], lines: Sequence[str]) -> str:
    """The preset: how it was made as a comment, then its options."""
    comment = [f"tools/anchors.py {' '.join(argv)}", *lines]
    body = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
    return "".join(f"# {' '.join(line.split())}\n" for line in comment) + body


def _objects(options: AnchorsOptions, run: TrainOptions, size: Size) -> Objects:
    """The objects of the record; OptionError where there are none."""
    sidecar = read_sidecar(options.train_path)
    resize = Resize(run.input.resize_mode, run.input.fill)
    found = object_boxes(options.train_path, len(sidecar.class_names) if sidecar else None, size, resize)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *found]).astype(np.float64)
    if not len(boxes):
        raise OptionError(f"--train-path {options.train_path}: has no objects to fit anchors to")
    return Objects(boxes, pixel_sizes(boxes, size), len(found))


def _drawn(boxes: np.ndarray, options: AnchorsOptions) -> np.ndarray:
    """At most options.max_objects of boxes (n, 4), chosen by the seed."""
    if len(boxes) <= options.max_objects:
        return boxes
    logger.info("fitting to %d of %d objects (--max-objects)", options.max_objects, len(boxes))
    return np.random.default_rng(options.seed).choice(boxes, options.max_objects, replace=False)


def _write(path: Path, content: bytes) -> None:
    _make_folder(path)
    write_atomically(path, content)


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    run_command(main)
