"""All objects of a record as boxes in a network input, without decoding its images."""

from pathlib import Path

import numpy as np

from common.errors import DataError
from dataset.image_check import image_header
from dataset.labels import parse_label, validate
from dataset.letterbox import Resize
from dataset.recordio import Record, RecordReader, unpack
from dataset.transforms import Size


def object_boxes(rec_path: str | Path, num_classes: int | None, size: Size, resize: Resize) -> list[np.ndarray]:
    """Corner boxes (n, 4) float32 of each record, normalised to an input of `size` that its image fills as `resize`.

    DataError names a record whose label or image header cannot be used.
    """
    reader = RecordReader(rec_path)
    boxes = []
    for position in range(len(reader)):
        where = f"{reader.path}, record {reader.keys[position]}"
        record = unpack(reader.read(position), where)
        objects = parse_label(record.label, where)
        validate(objects, num_classes, where)
        frame = resize.frame(_image_size(record, where), size)
        boxes.append(frame.move_boxes(objects[:, 1:5]))
    return boxes


def _image_size(record: Record, where: str) -> Size:
    try:
        return image_header(record.image).size
    except DataError as error:
        raise DataError(f"{where}: {error}; pack the data set again") from error
