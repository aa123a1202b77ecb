"""Options of tools/prepare_dataset.py."""

from dataclasses import dataclass

from config.options import option


@dataclass(frozen=True)
class PrepareOptions:
    """What to pack and where to; the flags of the classic command line and a few more."""

    dataset: str = option("pascal", "kind of annotations", "annotations", choices=("pascal", "coco", "yolo", "list"))
    root: str = option(
        "data/VOCdevkit",
        "pascal: VOCdevkit with VOC2007/..., or a folder with Annotations/, JPEGImages/ and perhaps ImageSets/Main/; "
        "coco: folder with annotations/instances_SET.json and SET/ or images/SET/; yolo: folder with images/ and "
        "labels/, a list of images (.txt), or a .data file; list: a file of lines `path x1,y1,x2,y2,class ...`",
        "annotations",
    )
    year: tuple[str, ...] = option((), "years of a VOCdevkit; none means 2007,2012; coco has none", "annotations")
    set: tuple[str, ...] = option(
        (),
        "image sets. pascal: one for all years, or one for each; none means trainval, or every image of a bare folder "
        "without ImageSets/. coco: one or several, packed together; none means train2017. "
        "yolo: folders in images/, none means all; of a .data file train (the default) or valid. list: none",
        "annotations",
    )
    class_names: tuple[str, ...] = option(
        (),
        "names in the order of the ids: a list, a file with one a line, or the .json of a record packed before; none "
        "means those of the COCO file by category id, the 20 of VOC if they cover the annotations, or the names found, "
        "sorted",
        "annotations",
    )
    only_class_names: bool = option(
        False,
        "leave out objects of classes that are not among --class-names, and count them, instead of refusing; yolo and "
        "list: --class-names then chooses among the names in the .names, instead of naming the ids anew",
        "annotations",
    )
    pixel_origin: int = option(
        1,
        "1: coordinates count pixels from 1 and include both ends (VOC); 0: they are edges measured from 0 (labelImg, "
        "CVAT). coco is always 0",
        "annotations",
        choices=(0, 1),
    )
    true_negative: bool = option(True, "keep images without objects, to learn from them what is none", "annotations")
    split: tuple[float, ...] = option(
        (),
        "shares of train, validation and, perhaps, test, as 0.81,0.09,0.1: writes NAME_train, NAME_val and NAME_test, "
        "drawn by --seed; of a pascal folder all annotations unless --set is given",
        "output",
        minimum=0.0,
        maximum=1.0,
    )
    annotation_list: bool = option(
        False,
        "also write NAME.txt with lines `path x1,y1,x2,y2,class ...`, without difficult objects, by --pixel-origin",
        "output",
    )
    target: str = option("data/train.lst", "list to write; .rec, .idx and .json go beside it", "output")
    shuffle: bool = option(True, "shuffle the images; --no-shuffle keeps the order of the sets", "output")
    seed: int = option(233, "seed of the shuffle and of --split", "output", minimum=0)
    skip_bad: bool = option(
        False,
        "leave damaged and missing images out, of pascal annotations too, and list them, instead of refusing",
        "output",
    )
    num_thread: int | None = option(
        None, "worker processes; none means all usable cores", "output", minimum=1, maximum=256
    )
