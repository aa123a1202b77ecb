"""What can be wrong with a data set, and what is said or done then: the second table of docs/data.md."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.dataset.coco import annotation, content, image
from tests.dataset.layouts import CATEGORIES, YOLO_TEXT, coco, images, voc, write, yolo
from tests.dataset.voc import CAT, jpeg, xml, xml_object


@dataclass(frozen=True)
class Fault:
    """A fault: what it is, how to make it in a folder, a part of what is said (PATH stands for any text before it).

    read: it is packed, and this is told; otherwise it is refused. images: how many are packed, with --skip-bad where it
    is refused; 0: none can be, None: those that are sound.
    """

    name: str
    build: Callable[[Path], object]
    says: str
    words: str = "--root FOLDER"
    read: bool = False
    images: int | None = None

    @property
    def packed(self) -> int:
        """How many images are packed, of two unless `images` says otherwise."""
        return (2 if self.read else 1) if self.images is None else self.images


def _voc_a(*objects: str, **size: int) -> Callable[[Path], object]:
    """A sound image b, and a with these objects."""

    def build(root: Path) -> None:
        images(root, "images/a.jpg", "images/b.jpg")
        voc(root, "annotations/b.xml")
        write(root / "annotations/a.xml", xml(*objects, **size))

    return build


def _yolo_a(text: str | None, names: str = "cat\ndog\n") -> Callable[[Path], object]:
    def build(root: Path) -> None:
        images(root, "images/a.jpg", "images/b.jpg")
        yolo(root, "labels/b.txt")
        if text is not None:
            write(root / "labels/a.txt", text)
        write(root / "classes.txt", names)

    return build


def _coco_a(**entry: object) -> Callable[[Path], object]:
    def build(root: Path) -> None:
        images(root, "images/a.jpg", "images/b.jpg")
        boxes = [annotation(2, 3, [0, 0, 20, 15]), annotation(1, 3, [0, 0, 20, 15])]
        boxes[1].update(entry)
        what = content([image(1, "a.jpg"), image(2, "b.jpg")], boxes, CATEGORIES)
        write(root / "annotations/instances_train.json", json.dumps(what))

    return build


def _coco_ids(*names: str) -> Callable[[Path], object]:
    """The images of these names, the id 1 each, and c of the id 2; an object in each."""

    def build(root: Path) -> None:
        images(root, *(f"images/{name}" for name in (*names, "c.jpg")))
        entries = [*(image(1, name) for name in names), image(2, "c.jpg")]
        boxes = [annotation(number, 3, [0, 0, 20, 15]) for number in (1, 2)]
        write(root / "annotations/instances_train.json", json.dumps(content(entries, boxes, CATEGORIES)))

    return build


def _voc_image(suffix: str, coded: bytes) -> Callable[[Path], object]:
    """A sound image b, and a with these bytes."""

    def build(root: Path) -> None:
        _voc_a(CAT)(root)
        (root / "images/a.jpg").unlink()
        write(root / f"images/a{suffix}", coded)

    return build


def _pixels(kind: str, factor: int = 1, **options: object) -> bytes:
    """An image of 40 x 30 pixels, grey; factor above 1: of 16 bits."""
    values = np.arange(1200).reshape(30, 40) % 256
    stream = io.BytesIO()
    Image.fromarray((values * factor).astype(np.uint16 if factor > 1 else np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


def _deep(*names: str) -> Callable[[Path], object]:
    """The images a and b, those of these names of 12 bits."""

    def build(root: Path) -> None:
        _voc_a(CAT)(root)
        for name in names:
            (root / f"images/{name}.jpg").unlink()
            write(root / f"images/{name}.png", _pixels("PNG", 16))

    return build


def _label_of_a_jpg(*objects: str, image: bool = True) -> Callable[[Path], object]:
    """A sound image b, and the label a.jpg.xml."""

    def build(root: Path) -> None:
        images(root, "images/b.jpg", *(["images/a.jpg"] if image else []))
        voc(root, "annotations/b.xml")
        write(root / "annotations/a.jpg.xml", xml(*objects))

    return build


def _set_line(line: str) -> Callable[[Path], object]:
    def build(root: Path) -> None:
        images(root, "JPEGImages/a.jpg")
        voc(root, "Annotations/a.xml")
        write(root / "ImageSets/Main/trainval.txt", f"{line}\n")

    return build


def _gb2312(root: Path) -> None:
    _voc_a()(root)
    text = '<?xml version="1.0" encoding="gb2312"?>' + xml(xml_object("猫", (1, 1, 9, 9)))
    write(root / "annotations/a.xml", text.encode("gb2312"))


def _mac(root: Path) -> None:
    _voc_a()(root)
    write(root / "annotations/._b.xml", b"\0\5\x16\7")


def _twins(root: Path) -> None:
    coco(root, "result.json")
    images(root, "images/a.jpg")
    text = (root / "result.json").read_text()
    write(root / "result.json", text.replace('"categories": [', '"categories": [{"id": 0, "name": "cat"}, '))


def _huge(root: Path) -> None:
    _voc_a(CAT)(root)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 9000, 8000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    (root / "images/a.jpg").unlink()
    write(root / "images/a.png", b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def _no_labels(root: Path) -> None:
    _yolo_a(None)(root)
    (root / "labels/b.txt").unlink()
    (root / "labels/other.txt").write_text(YOLO_TEXT)


def _list(line: str, **files: str) -> Callable[[Path], object]:
    def build(root: Path) -> None:
        images(root, "images/a.jpg")
        write(root / "boxes.txt", line)
        write(root / "classes.txt", "cat\ndog\n")
        for name, text in files.items():
            write(root / name.replace("_dot_", "."), text)

    return build


def _names(name: str, text: str | None) -> Callable[[Path], object]:
    def build(root: Path) -> None:
        _yolo_a(YOLO_TEXT, "x\ny\n")(root)
        (root / "classes.txt").unlink()
        if text is not None:
            write(root / name, text)

    return build


def _truncated(root: Path) -> None:
    _voc_a(CAT)(root)
    (root / "images/a.jpg").write_bytes(jpeg(400, 300)[:-3000])


_BOXES = "--root FOLDER/boxes.txt"
_WINDOW = "--bit-depth window:0,4080"
_TWICE = {"save_all": True, "append_images": [Image.new("L", (40, 30), 9)]}
FAULTS = (
    Fault("YOLO: a polygon", _yolo_a("0 .1 .1 .5 .1 .3 .5\n"), "a.txt:1: PATH is a polygon; --polygons box takes"),
    Fault("YOLO: a sixth column", _yolo_a("0 .5 .5 .1 .1 .9\n"), "a.txt:1: PATH has a sixth column"),
    Fault("YOLO: a box 1.0025 wide", _yolo_a("0 .5 .5 1.0025 .1\n"), "boxes clipped to their image: 1", read=True),
    Fault("YOLO: an id without name", _yolo_a("2 .5 .5 .1 .1\n"), "a.txt:1: PATH: the class is not one of 0 to 1"),
    Fault("YOLO: pixels", _yolo_a("0 20 15 9 9\n"), "a.txt:1: PATH cx cy w h are fractions of the image"),
    Fault("YOLO: one image without label", _yolo_a(None), "1 of 2 images have no label file", read=True),
    Fault("YOLO: no image with a label", _no_labels, "none of its 2 images has a label file", images=0),
    Fault("YOLO: no names", _names("", None), "its classes have no names: put one on each line", images=0),
    Fault("COCO: bbox []", _coco_a(bbox=[]), "annotation 2 has the bbox [], not four numbers"),
    Fault("COCO: bbox null", _coco_a(bbox=None), "annotation 2 has the bbox None"),
    Fault("COCO: an id that is a text", _coco_a(image_id="1"), "annotation 2 has the image_id '1'", images=2),
    Fault("COCO: no category", _coco_a(category_id=None), "annotation 2 has the category_id None"),
    Fault(
        "COCO: an image id of two files",
        _coco_ids("a.jpg", "b.jpg"),
        "the image id 1 is there more than once, of a.jpg",
    ),
    Fault(
        "COCO: an entry of an image twice",
        _coco_ids("a.jpg", "a.jpg"),
        "the image id 1 is there more than once, of a.jpg and a.jpg",
        images=2,
    ),
    Fault("COCO: iscrowd null", _coco_a(iscrowd=None), "1 annotations have iscrowd null", read=True),
    Fault(
        "COCO: two categories of a name",
        _twins,
        "the category 0, 'cat', has no annotations and the name",
        read=True,
        images=1,
    ),
    Fault(
        "VOC: difficult Unspecified",
        _voc_a(xml_object("cat", (1, 1, 9, 9), "Unspecified")),
        "1 objects have a <difficult> that is no number",
        read=True,
    ),
    Fault("VOC: a box of texts", _voc_a(xml_object("cat", ("x", 1, 9, 9))), "a.xml: <xmin> holds 'x', not a number"),
    Fault("VOC: XML in gb2312", _gb2312, "a.xml: its encoding cannot be read PATH; save it as UTF-8"),
    Fault("files ._* of macOS", _mac, "1 files ._* that macOS left there were skipped", read=True),
    Fault("VOC: a set line `a 1`", _set_line("a 1"), "'a 1' is a line of a set of one class", images=0),
    Fault("VOC: a set line `a.jpg`", _set_line("a.jpg"), "images: 1,", read=True, images=1),
    Fault("resized, same proportions", _voc_a(CAT, width=80, height=60), "their boxes were scaled: 1", read=True),
    Fault("of other proportions", _voc_a(CAT, width=80, height=30), "80 x 30 annotated, 40 x 30 decoded, of other"),
    Fault("an object twice", _voc_a(CAT, CAT), "the same class and box twice: 1", read=True),
    Fault("a box outside", _voc_a(xml_object("cat", (50, 1, 60, 9))), "images that lost all their boxes", read=True),
    Fault("xmax 5000 of 40", _voc_a(xml_object("cat", (5, 1, 5000, 9))), "boxes that reach far outside", read=True),
    Fault("classes `Cat` and `cat`", _voc_a(xml_object("Cat", (1, 1, 9, 9))), "are they one class?", read=True),
    Fault("a JPEG cut off", _truncated, "images/a.jpg: damaged JPEG"),
    Fault(
        "12 bits in a PNG of 16", _voc_image(".png", _pixels("PNG", 16)), "values of uint16 from 0 to 4080, more than 8"
    ),
    Fault("12 bits and a window", _deep("a", "b"), "images: 2,", f"--root FOLDER {_WINDOW}", read=True),
    Fault(
        "8 bits and a window",
        _deep("b"),
        "a.jpg: has 8 bits, and the bit depth window:0,4080",
        f"--root FOLDER {_WINDOW}",
    ),
    Fault("a TIFF", _voc_image(".tif", _pixels("TIFF")), "images: 2,", read=True),
    Fault("a TIFF of two pages", _voc_image(".tif", _pixels("TIFF", **_TWICE)), "a TIFF of several pages"),
    Fault("an animated WEBP", _voc_image(".webp", _pixels("WEBP", **_TWICE)), "an animated WEBP"),
    Fault("a GIF", _voc_image(".gif", _pixels("GIF")), "a.gif: none of JPEG, PNG, BMP, WEBP, TIFF; convert it"),
    Fault(
        "VOC: a.jpg.xml, a box of texts",
        _label_of_a_jpg(xml_object("cat", ("x", 1, 9, 9))),
        "a.jpg.xml: <xmin> holds 'x'",
    ),
    Fault("VOC: a.jpg.xml without a.jpg", _label_of_a_jpg(CAT, image=False), "images/a.jpg: the image is missing"),
    Fault("VOC: a.jpg.xml", _label_of_a_jpg(CAT), "images: 2,", read=True),
    Fault("72 megapixels", _huge, "more than 64 million; make it smaller or cut it into tiles"),
    Fault(
        "names: no such file", _names("", None), "no.txt: no such file", "--root FOLDER --class-names no.txt", images=0
    ),
    Fault(
        "names: pbtxt",
        _names("m.pbtxt", "item {\n id: 1\n}\n"),
        "is no list of names that can be read",
        "--root FOLDER --class-names FOLDER/m.pbtxt",
        images=0,
    ),
    Fault(
        "names: YAML as text",
        _names("m.txt", "names:\n- cat\n- dog\n"),
        "'names:' is no name of a class",
        "--root FOLDER --class-names FOLDER/m.txt",
        images=0,
    ),
    Fault("list: `images\\a.jpg`", _list("images\\a.jpg 1,1,9,9,0\n"), "images: 1,", _BOXES, read=True, images=1),
    Fault(
        "list: `D:\\set\\a.jpg`",
        _list("D:\\set\\a.jpg 1,1,9,9,0\nimages/a.jpg\n"),
        "is a path of a Windows machine",
        _BOXES,
    ),
    Fault(
        "list: a YAML", _list("", x_dot_yaml="a: b\n"), "is no list of", "--dataset list --root FOLDER/x.yaml", images=0
    ),
)


def fault_rows() -> list[str]:
    def row(fault: Fault) -> str:
        return f"| {fault.name} | {'read' if fault.read else 'refused'} | {fault.says.replace('PATH', '...')} |"

    return ["| fault | | what is said |", "|---|---|---|", *map(row, FAULTS)]
