"""Annotated images as files of VOC, COCO, YOLO, CSV and LabelMe, which the readers of this folder read back.

A function for each kind of file, and for each format how a data set of it lies in a folder (FORMATS), such that
`--dataset auto` knows it. An image to write has a size, and the name of its picture in the set's folder.

Boxes keep all their digits. Whole numbers are written without a fraction, as many readers take nothing else.
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath
from typing import Any

import numpy as np

from common.errors import DataError
from common.files import MAX_TEXT_BYTES
from common.sizes import Size
from dataset.image_check import IMAGE_SUFFIXES, OTHER_SUFFIXES, file_suffix
from dataset.imdb import MAC_PREFIX, AnnotatedImage
from dataset.pascal_voc import VOC_CLASSES
from dataset.voc_folders import IMAGE_FOLDERS

Sets = Mapping[str, Sequence[AnnotatedImage]]  # "" is the name of a set without one
NAMES = "classes.yaml"  # names in the order of the ids, for formats that do not say it
_WHOLE = "train"  # what a set without a name is called where each needs one
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")  # breaks lines, or is in no XML
_YAML_KEY = re.compile(r"(?<![a-z])(train|val|test)")  # of a name of a set, what data.yaml calls it
_CSV_COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
_LONGEST = 200  # bytes of a name without suffix: file systems take 255 with it
_DEPTH = 3  # the header is not asked for the channels; networks here see RGB


def voc_annotation(image: AnnotatedImage, class_names: Sequence[str], pixel_origin: int = 1) -> bytes:
    """The XML file of an image; pixel_origin as in dataset/pascal_voc.py. Scores stand in <score>, which readers skip.

    Readers drop a box that with pixel_origin 1 is no wider or higher than a pixel (thin_boxes).
    """
    height, width = _size(image)
    name = escape(image.name, quote=False)
    lines = [
        f"<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{name}</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>{_DEPTH}</depth></size>",
        "  <segmented>0</segmented>",
    ]
    for k, (id_, *box, difficult) in enumerate(_with_origin(image, pixel_origin).tolist()):
        corners = zip(("xmin", "ymin", "xmax", "ymax"), map(_text, box), strict=True)
        score = "" if image.scores is None else f"<score>{_text(image.scores[k])}</score>"
        lines.append(
            f"  <object>\n    <name>{escape(class_names[int(id_)], quote=False)}</name><pose>Unspecified</pose>"
            f"<truncated>0</truncated><difficult>{int(difficult != 0)}</difficult>{score}\n"
            f"    <bndbox>{''.join(f'<{tag}>{value}</{tag}>' for tag, value in corners)}</bndbox>\n  </object>"
        )
    return "\n".join([*lines, "</annotation>\n"]).encode("utf-8")


def yolo_labels(image: AnnotatedImage, scores: bool = False) -> bytes:
    """The label file of an image, lines `class cx cy w h`; empty without objects.

    Boxes are clipped to the image, as fractions beyond it are refused by most readers; what then has no area is left
    out. Difficult objects are written as the others. scores: with a sixth column, as detections have it, which readers
    of labels refuse.
    """
    height, width = _size(image)
    boxes = np.clip(image.objects[:, 1:5], 0, (width, height, width, height))
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    columns = [image.objects[:, :1], centres / (width, height), sides / (width, height)]
    if scores and image.scores is not None:
        columns.append(image.scores.reshape(-1, 1))
    rows = np.concatenate(columns, axis=1)[(sides > 0).all(axis=1)].tolist()
    return "".join(" ".join(map(_text, row)) + "\n" for row in rows).encode("ascii")


def labelme_annotation(image: AnnotatedImage, class_names: Sequence[str]) -> bytes:
    """The JSON file of an image for LabelMe; difficult objects have the flag `difficult`, scores are descriptions."""
    height, width = _size(image)
    shapes = [
        {
            "label": class_names[int(id_)],
            "points": [_plain(box[:2]), _plain(box[2:])],
            "group_id": None,
            "description": "" if image.scores is None else f"score {_text(image.scores[k])}",
            "shape_type": "rectangle",
            "flags": {"difficult": True} if difficult else {},
        }
        for k, (id_, *box, difficult) in enumerate(image.objects.tolist())
    ]
    content: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image.name,
        "imageData": None,
    }
    return _json(content | {"imageHeight": height, "imageWidth": width})


def coco_annotations(images: Sequence[AnnotatedImage], class_names: Sequence[str]) -> bytes:
    """A COCO annotation file; ids count from 1, those of the categories in the order of the classes.

    A difficult object has iscrowd 1, which the metrics ignore, and `ignore` 1. Scores stand in `score`.
    """
    annotations: list[dict[str, Any]] = []
    entries = []
    for number, image in enumerate(images, 1):
        height, width = _size(image)
        entries.append({"id": number, "file_name": image.name, "width": width, "height": height})
        sides = image.objects[:, 3:5] - image.objects[:, 1:3]
        boxes = np.concatenate([image.objects[:, 1:3], sides], axis=1).tolist()
        for k, (box, row) in enumerate(zip(boxes, image.objects.tolist(), strict=True)):
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(row[0]) + 1,
                "bbox": _plain(box),
            }
            entry |= {"area": box[2] * box[3], "segmentation": [], "iscrowd": int(row[5] != 0)}
            entry |= {"ignore": 1} if row[5] else {}
            annotations.append(entry if image.scores is None else entry | {"score": float(image.scores[k])})
    categories = [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(class_names, 1)]
    return _json({"info": {}, "licenses": [], "images": entries, "annotations": annotations, "categories": categories})


def csv_boxes(images: Sequence[AnnotatedImage], class_names: Sequence[str], pixel_origin: int = 1) -> bytes:
    """A CSV file with a header and a line for each box; an image without objects has one with its name and size alone.

    The columns difficult and score are there where they are needed. What is said of thin boxes at voc_annotation holds.
    """
    difficult = any(image.objects[:, 5].any() for image in images)
    scores = any(image.scores is not None for image in images)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*_CSV_COLUMNS, *(["difficult"] if difficult else []), *(["score"] if scores else [])])
    for image in images:
        height, width = _size(image)
        for k, (id_, *box, hard) in enumerate(_with_origin(image, pixel_origin).tolist()):
            more = [str(int(hard != 0))] if difficult else []
            more += ["" if image.scores is None else _text(image.scores[k])] if scores else []
            writer.writerow([image.name, width, height, class_names[int(id_)], *map(_text, box), *more])
        if not len(image.objects):
            writer.writerow([image.name, width, height, *[""] * (5 + difficult + scores)])
    return stream.getvalue().encode("utf-8")


def names_yaml(class_names: Sequence[str]) -> bytes:
    """Names of classes as a list in YAML, which --class-names takes."""
    return "".join(f"- {_quoted(name)}\n" for name in class_names).encode("utf-8")


def check_class_names(class_names: Sequence[str], coco: bool = False) -> None:
    """DataError for no name at all, and for one that a file would not give back: with a line break or control
    character, or outer blanks.

    coco: its reader takes printable characters alone.
    """
    if not class_names:
        raise DataError("there are no objects and so no classes; name these with --class-names")
    for name in class_names:
        if not name or name != name.strip() or _NO_TEXT.search(name) or (coco and not name.isprintable()):
            raise DataError(
                f"the class name {name!r:.80} has outer blanks or characters that annotations cannot hold; rename the "
                "class, or leave it out with --class-names and --only-class-names"
            )


def thin_boxes(images: Sequence[AnnotatedImage], pixel_origin: int) -> int:
    """How many boxes VOC and CSV would lose, whose readers see no area in them: xmax <= xmin as written."""
    rows = np.concatenate([np.zeros((0, 6)), *(_with_origin(image, pixel_origin) for image in images)])
    return int((rows[:, 3:5] <= rows[:, 1:3]).any(axis=1).sum())


@dataclass(frozen=True)
class Format:
    """How a data set of a format lies in a folder.

    pictures: the folder of a set's pictures. annotations: (path, content) of all other files of {set: images}; the
    pixel origin counts for VOC and CSV alone. shared: all sets have one folder of pictures.
    """

    pictures: Callable[[str], str]
    annotations: Callable[[Sets, Sequence[str], int], Iterator[tuple[str, bytes]]]
    shared: bool = False


def flat_names(names: Sequence[str]) -> list[str]:
    """Paths of pictures as names for one folder, with _ for /; not always different.

    Folders that all have in common are left out, and those that are usual for pictures (JPEGImages, images, ...).
    """
    parts = [PurePath(name.lstrip("/")).parts for name in names]
    shared = len(os.path.commonprefix([one[:-1] for one in parts]))
    return [
        "_".join([*(part for part in one[shared:-1] if part not in (*IMAGE_FOLDERS, "..")), one[-1]]) for one in parts
    ]


def safe_name(name: str, content: bytes = b"") -> tuple[str, str]:
    """(stem, suffix) of a name of a picture that no reader trips over: printable, not too long, no outer blanks.

    content: the beginning of the picture where its format decides on the suffix, else empty.
    """
    text = "".join(one if one.isprintable() and one != "\\" else "_" for one in name).strip()
    suffix = PurePath(text).suffix
    suffix = suffix if suffix.lower() in (*IMAGE_SUFFIXES, *OTHER_SUFFIXES) else ""
    stem = text.removesuffix(suffix).strip()
    stem = f"_{stem}" if stem.startswith(MAC_PREFIX) or not stem else stem
    while len(stem.encode()) > _LONGEST:
        stem = stem[1:].strip()
    return stem, file_suffix(content, suffix) if content else suffix or IMAGE_SUFFIXES[0]


def stem_of(name: str) -> str:
    """What the annotation of a picture is called, without suffix."""
    return PurePath(name).stem


def _voc(sets: Sets, class_names: Sequence[str], pixel_origin: int) -> Iterator[tuple[str, bytes]]:
    lists = {name or "trainval": [stem_of(image.name) for image in images] for name, images in sets.items()}
    if len(lists) > 1 and "trainval" not in lists:
        known = [stems for name, stems in lists.items() if not name.startswith("test")] or list(lists.values())
        lists["trainval"] = list(dict.fromkeys(stem for stems in known for stem in stems))
    unique = {image.name: image for images in sets.values() for image in images}
    for image in unique.values():
        yield f"Annotations/{stem_of(image.name)}.xml", voc_annotation(image, class_names, pixel_origin)
    for name, stems in lists.items():
        yield f"ImageSets/Main/{name}.txt", "".join(f"{stem}\n" for stem in stems).encode("utf-8")
    yield NAMES, names_yaml(class_names)


def _coco(sets: Sets, class_names: Sequence[str], _: int) -> Iterator[tuple[str, bytes]]:
    for name, images in sets.items():
        yield f"annotations/instances_{name or _WHOLE}.json", coco_annotations(images, class_names)


def _yolo(sets: Sets, class_names: Sequence[str], _: int) -> Iterator[tuple[str, bytes]]:
    lines = []
    for key, names in yaml_keys(list(sets)).items():
        folders = [_quoted(f"images/{name or _WHOLE}") for name in names]
        lines.append(f"{key}: {folders[0] if len(folders) == 1 else '[' + ', '.join(folders) + ']'}\n")
    lines += [f"nc: {len(class_names)}\nnames:\n", *(f"  - {_quoted(name)}\n" for name in class_names)]
    yield "data.yaml", "".join(lines).encode("utf-8")
    for name, images in sets.items():
        for image in images:
            yield f"labels/{name or _WHOLE}/{stem_of(image.name)}.txt", yolo_labels(image)


def yaml_keys(sets: Sequence[str]) -> dict[str, list[str]]:
    """{train, val or test: the sets that data.yaml names there}; a single set of any name is train.

    DataError for one of several sets whose name does not say what it is.
    """
    keys: dict[str, list[str]] = {}
    for name in sets:
        found = _YAML_KEY.search(name.lower())
        if not found and len(sets) > 1:
            raise DataError(
                f"the set {name!r} is neither train, val nor test by its name, which a data.yaml has alone; convert it "
                "by itself with --set"
            )
        keys.setdefault(found[1] if found else "train", []).append(name)
    return {key: keys[key] for key in ("train", "val", "test") if key in keys}


def _csv(sets: Sets, class_names: Sequence[str], pixel_origin: int) -> Iterator[tuple[str, bytes]]:
    for name, images in sets.items():
        content = csv_boxes(images, class_names, pixel_origin)
        if len(content) > MAX_TEXT_BYTES:
            raise DataError(f"the boxes need a CSV of {len(content)} bytes, more than can be read; choose another --to")
        yield f"{name}/_annotations.csv".removeprefix("/"), content
    yield NAMES, names_yaml(class_names)


def _labelme(sets: Sets, class_names: Sequence[str], _: int) -> Iterator[tuple[str, bytes]]:
    for name, images in sets.items():
        for image in images:
            path = f"{name}/{stem_of(image.name)}.json".removeprefix("/")
            yield path, labelme_annotation(image, class_names)
    yield NAMES, names_yaml(class_names)


FORMATS: Mapping[str, Format] = {
    "voc": Format(lambda _: "JPEGImages", _voc, shared=True),
    "coco": Format(lambda name: f"images/{name or _WHOLE}", _coco),
    "yolo": Format(lambda name: f"images/{name or _WHOLE}", _yolo),
    "csv": Format(lambda name: name, _csv),
    "labelme": Format(lambda name: name, _labelme),
}


def losses(kind: str, sets: Sets, class_names: Sequence[str], pixel_origin: int = 1) -> list[str]:
    """A sentence for each thing that a format of FORMATS does not keep of these images."""
    images = [image for part in sets.values() for image in part]
    lines = []
    if kind == "yolo":
        lines = _losses_of_yolo(images)
    if kind in ("voc", "csv") and (count := thin_boxes(images, pixel_origin)):
        lines.append(f"boxes of a pixel or less, which readers of {kind} drop (--output-origin 0 keeps them): {count}")
    if kind in ("voc", "csv", "labelme"):
        ids = np.unique(np.concatenate([np.zeros(0), *(image.objects[:, 0] for image in images)])).astype(int)
        found = tuple(sorted(class_names[k] for k in ids))
        read = VOC_CLASSES if kind == "voc" and set(found) <= set(VOC_CLASSES) else found
        if read != tuple(class_names):
            lines.append(f"{kind} has neither the order of the classes nor those without objects; {NAMES} has both")
    return lines


def _losses_of_yolo(images: Sequence[AnnotatedImage]) -> list[str]:
    clipped = outside = difficult = 0
    for image in images:
        height, width = _size(image)
        boxes = image.objects[:, 1:5]
        inside = np.clip(boxes, 0, (width, height, width, height))
        empty = (inside[:, 2:] <= inside[:, :2]).any(axis=1)
        outside += int(empty.sum())
        clipped += int(((inside != boxes).any(axis=1) & ~empty).sum())
        difficult += int((image.objects[:, 5] != 0).sum())
    counts = {
        "difficult objects, which yolo does not know, written as the others": difficult,
        "boxes clipped to their image, as yolo's fractions end there": clipped,
        "boxes outside their image, left out": outside,
    }
    return [f"{what}: {count}" for what, count in counts.items() if count]


def _size(image: AnnotatedImage) -> Size:
    assert image.size is not None  # an image to write has one
    return image.size


def _with_origin(image: AnnotatedImage, pixel_origin: int) -> np.ndarray:
    """The objects (n, 6) with coordinates as VOC counts them."""
    return image.objects + np.array([0, pixel_origin, pixel_origin, 0, 0, 0])


def _text(value: float) -> str:
    """A number with all its digits, without a fraction where it is whole."""
    return repr(float(value) + 0.0).removesuffix(".0")  # -0.0 + 0.0 is 0.0


def _plain(values: Sequence[float]) -> list[float]:
    return [int(value) if value.is_integer() else value for value in values]


def _json(content: dict[str, Any]) -> bytes:
    """JSON in ASCII: some readers take the encoding of their machine."""
    return (json.dumps(content, allow_nan=False) + "\n").encode("ascii")


def _quoted(text: str) -> str:
    """A text in YAML: JSON's quotes are YAML's, whatever the text would mean without them."""
    return json.dumps(text, ensure_ascii=False)
