"""Data sets in the layouts that people have: an image of 40 x 30 pixels with a cat in its first quarter and a dog in
the last, written as each tool does. docs/data.md is made of this table: `python -m tests.dataset.layouts` writes it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.dataset.coco import annotation, content, image
from tests.dataset.voc import CAT, DOG, jpeg, xml

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"
YOLO_TEXT = "0 0.25 0.25 0.5 0.5\n1 0.75 0.75 0.5 0.5\n"
CSV_LINES = "a.jpg,1,1,20,15,cat\na.jpg,21,16,40,30,dog\n"
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
DOG_0 = DOG.replace("<difficult>1", "<difficult>0")


def put(root: Path, **files: str | bytes) -> None:
    """Files by their paths in the root; `/` is written as `__` and `.` as `_dot_`."""
    for name, value in files.items():
        write(root / name.replace("__", "/").replace("_dot_", "."), value)


def write(path: Path, value: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value.encode() if isinstance(value, str) else value)


def images(root: Path, *paths: str) -> None:
    for seed, path in enumerate(paths):
        write(root / path, jpeg(seed=seed))


def voc(root: Path, *paths: str) -> None:
    for path in paths:
        write(root / path, xml(CAT, DOG_0))


def yolo(root: Path, *paths: str) -> None:
    for path in paths:
        write(root / path, YOLO_TEXT)


def coco(root: Path, path: str, file_name: str = "a.jpg") -> None:
    boxes = [annotation(1, 3, [0, 0, 20, 15]), annotation(1, 7, [20, 15, 20, 15])]
    write(root / path, json.dumps(content([image(1, file_name)], boxes, CATEGORIES)))


def labelme(root: Path, path: str, image_path: str) -> None:
    shapes = [
        {"label": "cat", "points": [[0, 0], [20, 15]], "shape_type": "rectangle"},
        {"label": "dog", "points": [[20, 15], [40, 16], [30, 30]], "shape_type": "polygon"},
    ]
    what = {"version": "5", "shapes": shapes, "imagePath": image_path, "imageHeight": 30, "imageWidth": 40}
    write(root / path, json.dumps(what))


@dataclass(frozen=True)
class Layout:
    """A layout: what it is called, its files, the words of the command with FOLDER for the root, what auto says, and
    how many images it then has."""

    name: str
    files: str
    build: Callable[[Path], object]
    kind: str
    words: str = "--root FOLDER"
    count: int = 1


def _devkit(root: Path) -> None:
    images(root, "VOC2007/JPEGImages/a.jpg")
    voc(root, "VOC2007/Annotations/a.xml")
    write(root / "VOC2007/ImageSets/Main/trainval.txt", "a\n")


def _voc_sets(root: Path) -> None:
    images(root, "JPEGImages/a.jpg", "JPEGImages/b.jpg")
    voc(root, "Annotations/a.xml", "Annotations/b.xml")
    write(root / "ImageSets/Main/trainval.txt", "a.jpg\n")
    write(root / "labels.csv", "path,x1\n")  # of another tool: Annotations/ wins


def _cvat_voc(root: Path) -> None:
    images(root, "JPEGImages/a.jpg")
    voc(root, "Annotations/a.xml")
    write(root / "ImageSets/Main/default.txt", "a\n")
    write(root / "labelmap.txt", "# label:color_rgb:parts:actions\n")


def _voc(annotations: str, pictures: str) -> Callable[[Path], object]:
    def build(root: Path) -> None:
        images(root, f"{pictures}a.jpg")
        voc(root, f"{annotations}a.xml")
        write(root / f"{annotations}._a.xml", b"\0\5\x16\7")

    return build


def _roboflow_voc(root: Path) -> None:
    for part in ("train", "valid", "test"):
        images(root, f"{part}/a.jpg")
        voc(root, f"{part}/a.xml")
    write(root / "README.roboflow.txt", "raccoons\n")


def _voc_elsewhere(root: Path) -> None:
    images(root, "pictures/a.jpg")
    voc(root, "boxes/a.xml")


def _coco_classic(root: Path) -> None:
    images(root, "train2017/a.jpg")
    coco(root, "annotations/instances_train2017.json")


def _roboflow_coco(root: Path) -> None:
    for part in ("train", "valid"):
        images(root, f"{part}/a.jpg")
        coco(root, f"{part}/_annotations.coco.json")


def _cvat_coco(root: Path) -> None:
    images(root, "images/default/a.jpg")
    coco(root, "annotations/instances_default.json")


def _label_studio_coco(root: Path) -> None:
    images(root, "images/a.jpg")
    coco(root, "result.json", "images/a.jpg")


def _yolo_sets(root: Path) -> None:
    images(root, "images/train/a.jpg", "images/val/b.jpg")
    yolo(root, "labels/train/a.txt", "labels/val/b.txt")
    write(root / "mine.names", "cat\r\ndog\r\n")


def _roboflow_yolo(root: Path) -> None:
    for part in ("train", "valid"):
        images(root, f"{part}/images/a.jpg")
        yolo(root, f"{part}/labels/a.txt")
    write(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")


def _ultralytics(root: Path) -> None:
    images(root, "images/train/a.jpg", "images/val/b.jpg")
    yolo(root, "labels/train/a.txt", "labels/val/b.txt")
    text = "path: ../datasets/mine\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"
    write(root / "data.yaml", text)


def _darknet(root: Path) -> None:
    images(root, "images/a.jpg")
    yolo(root, "labels/a.txt")
    write(root / "mine.data", "classes = 2\ntrain = train.txt\nnames = mine.names\n")
    write(root / "mine.names", "cat\ndog\n")
    write(root / "train.txt", "images/a.jpg\n")


def _cvat_yolo(root: Path) -> None:
    images(root, "obj_train_data/a.jpg")
    yolo(root, "obj_train_data/a.txt")
    write(root / "obj.names", "cat\ndog\n")
    write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(root / "train.txt", "data/obj_train_data/a.jpg\n")


def _label_studio_yolo(root: Path) -> None:
    images(root, "images/a.jpg")
    yolo(root, "labels/a.txt")
    write(root / "classes.txt", "cat\ndog\n")
    write(root / "notes.json", '{"categories": [{"id": 0, "name": "cat"}], "info": {}}')


def _yolo_elsewhere(root: Path) -> None:
    images(root, "pictures/one/a.jpg")
    yolo(root, "boxes/a.txt")
    write(root / "boxes/classes.txt", "cat\ndog\n")


def _yolo_beside(root: Path) -> None:
    images(root, "images/a.jpg")
    yolo(root, "images/a.txt")
    write(root / "images/classes.txt", "cat\ndog\n")


def _yolo_flat(root: Path) -> None:
    images(root, "a.JPG")
    yolo(root, "a.JPG.TXT")
    write(root / "classes.txt", "\ufeffcat\r\n\r\ndog\r\n")


def _labelme_beside(root: Path) -> None:
    images(root, "a.jpg")
    labelme(root, "a.json", "..\\pictures\\a.jpg")


def _csv(root: Path) -> None:
    images(root, "a.jpg")
    write(root / "boxes.csv", CSV_LINES)


def _csv_header(root: Path) -> None:
    images(root, "images/a.jpg")
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    write(root / "labels.csv", f"{header}a.jpg,40,30,cat,1,1,20,15\na.jpg,40,30,dog,21,16,40,30\n")


def _list(root: Path) -> None:
    images(root, "my images/a.jpg")
    write(root / "boxes.txt", "my images/a.jpg 1,1,20,15,0 21,16,40,30,1\n")


def _several(root: Path) -> None:
    _voc("annots/", "images/")(root / "one")
    _csv(root / "two")


LAYOUTS = (
    Layout("VOCdevkit", "`VOC2007/Annotations/` `JPEGImages/`", _devkit, "pascal", "--root FOLDER --year 2007"),
    Layout("VOC, with sets", "`Annotations/` `JPEGImages/` `ImageSets/`", _voc_sets, "pascal"),
    Layout("CVAT's VOC", "`ImageSets/Main/default.txt`", _cvat_voc, "pascal"),
    Layout("VOC without sets", "`annotations/` `images/`", _voc("annotations/", "images/"), "pascal"),
    Layout("VOC, other names", "`annots/` `images/`", _voc("annots/", "images/"), "pascal"),
    Layout("XML beside JPEG", "`a.jpg` `a.xml`", _voc("", ""), "pascal"),
    Layout("XML beside JPEG, below", "`images/a.jpg` `images/a.xml`", _voc("images/", "images/"), "pascal"),
    Layout("Roboflow's VOC", "`train/a.jpg` `a.xml`", _roboflow_voc, "pascal", "--root FOLDER --set train,test", 2),
    Layout(
        "VOC, anywhere", "any two folders", _voc_elsewhere, "pascal",
        "--root FOLDER --annotations FOLDER/boxes --images FOLDER/pictures",
    ),
    Layout("COCO", "`annotations/instances_train2017.json` `train2017/`", _coco_classic, "coco"),
    Layout("Roboflow's COCO", "`train/_annotations.coco.json`", _roboflow_coco, "coco", "--root FOLDER --set valid"),
    Layout("CVAT's COCO", "`annotations/instances_default.json`", _cvat_coco, "coco"),
    Layout("Label Studio's COCO", "`result.json` `images/`", _label_studio_coco, "coco"),
    Layout("YOLO, with sets", "`images/train/` `labels/train/`", _yolo_sets, "yolo", "--root FOLDER --set train"),
    Layout("Roboflow's YOLO", "`data.yaml` `train/images/` `train/labels/`", _roboflow_yolo, "yolo"),
    Layout("ultralytics' YOLO", "`data.yaml`", _ultralytics, "yolo", "--root FOLDER/data.yaml --set train,val", 2),
    Layout("Darknet", "`x.data` `train.txt` `x.names`", _darknet, "yolo", "--root FOLDER/mine.data"),
    Layout("CVAT's YOLO", "`obj.data` `obj_train_data/`", _cvat_yolo, "yolo"),
    Layout("Label Studio's YOLO", "`classes.txt` `images/` `labels/`", _label_studio_yolo, "yolo"),
    Layout("YOLO, labels beside", "`images/a.jpg` `images/a.txt`", _yolo_beside, "yolo"),
    Layout("YOLO, all in one folder", "`a.JPG` `a.JPG.TXT` `classes.txt`", _yolo_flat, "yolo"),
    Layout(
        "YOLO, anywhere", "any two folders", _yolo_elsewhere, "yolo",
        "--root FOLDER --annotations FOLDER/boxes --images FOLDER/pictures",
    ),
    Layout("LabelMe", "`a.jpg` `a.json`", _labelme_beside, "labelme"),
    Layout("CSV without header", "`path,x1,y1,x2,y2,class`", _csv, "csv"),
    Layout("CSV with header", "`filename,width,height,class,xmin,...`", _csv_header, "csv"),
    Layout(
        "annotation list", "`path x1,y1,x2,y2,id ...`", _list, "list",
        "--root FOLDER/boxes.txt --class-names cat,dog",
    ),
    Layout("several roots", "any of these", _several, "pascal+csv", "--root FOLDER/one,FOLDER/two", 2),
)  # fmt: skip


def layout_rows() -> list[str]:
    rows = [f"| {one.name} | {one.files} | {one.kind} | `{one.words}` |" for one in LAYOUTS]
    return ["| layout | files | read as | command |", "|---|---|---|---|", *rows]


def with_table(text: str, name: str, rows: list[str]) -> str:
    """The document with the rows of a table between its marks."""
    before, begin, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    assert begin, name
    return before + begin + "\n".join(["", *rows, "", ""]) + end + after


if __name__ == "__main__":
    from tests.dataset.faults import fault_rows
    from tests.tools.test_check_dataset import code_rows

    made = with_table(DOCUMENT.read_text("utf-8"), "layouts", layout_rows())
    made = with_table(made, "codes", code_rows())
    DOCUMENT.write_text(with_table(made, "faults", fault_rows()), "utf-8")
