"""Options of tools/im2rec.py: the flags of mxnet's own im2rec and a few more."""

from dataclasses import dataclass

from config.options import option

_LIST, _PACK = "making lists (--list)", "packing a list"


@dataclass(frozen=True)
class Im2recOptions:
    """What to list or to pack, and how."""

    prefix: str = option(
        "", "PREFIX.lst is made or packed; without it, the lists that --list makes of it", words="positional"
    )
    root: str = option("", "folder that the paths in the list start from", words="positional")
    follow_links: bool = option(
        False, "take what symbolic links in ROOT lead to outside of it, too, as mxnet's im2rec does"
    )
    list: bool = option(False, "make PREFIX.lst of the images in ROOT instead of packing one", _LIST)
    exts: tuple[str, ...] = option((".jpeg", ".jpg", ".png"), "suffixes of images", _LIST, words="several")
    chunks: int = option(1, "lists PREFIX_0, PREFIX_1... to spread the images over", _LIST, minimum=1)
    train_ratio: float = option(
        1.0, "share of the images for PREFIX_train.lst; what both ratios leave goes to PREFIX_val.lst", _LIST,
        minimum=0.0, maximum=1.0,
    )  # fmt: skip
    test_ratio: float = option(0.0, "share of the images for PREFIX_test.lst", _LIST, minimum=0.0, maximum=1.0)
    recursive: bool = option(False, "walk the folders below ROOT, each of them a class", _LIST)
    shuffle: bool = option(True, "shuffle the images; --no-shuffle keeps them sorted", _LIST)
    pass_through: bool = option(False, "store the files as they are instead of encoding the images anew", _PACK)
    resize: int = option(0, "length of the shorter edge in pixels; 0 = as it is", _PACK, minimum=0, maximum=16384)
    center_crop: bool = option(False, "cut the square out of the middle (not with detection labels)", _PACK)
    quality: int | None = option(
        None,
        "JPEG quality 1-100, PNG compression 1-9 (default: 95 for .jpg, 9 for .png)",
        _PACK,
        minimum=1,
        maximum=100,
    )
    num_thread: int | None = option(None, "threads (default: all usable cores)", _PACK, minimum=1, maximum=256)
    color: int = option(1, "1 = colour, 0 = grey, -1 = as stored, with alpha", _PACK, choices=(-1, 0, 1))
    encoding: str = option(".jpg", "encoding of the images", _PACK, choices=(".jpg", ".png"))
    pack_label: bool | None = option(
        None, "store all values of a label, --no-pack-label: the first (default: all where there are several)", _PACK
    )
    class_names: tuple[str, ...] = option(
        (),
        "names of the classes of detection labels, for the sidecar PREFIX.json: a list, a file with one a line, or the "
        ".json of a record (default: those of the PREFIX.json that is there; without one no sidecar is written)",
        _PACK,
    )
    check_labels: bool = option(
        True, "refuse detection labels that cannot be trained on; --no-check-labels takes any numbers", _PACK
    )
    skip_bad: bool = option(False, "leave damaged and missing images out, and list them, instead of refusing", _PACK)
