"""PASCAL VOC annotations: a VOCdevkit (VOC2007, VOC2012...) or a bare folder with Annotations/ and JPEGImages/.

Pixel convention. VOC counts pixels from 1 and its boxes include both ends (VOC2007 development kit): xmin = xmax = 1 is
the first column of pixels. The edges of such a box are therefore xmin - 1, ymin - 1, xmax, ymax, and a box over a whole
image of width w, (1, w), has edges 0 and w. That is pixel_origin=1. With pixel_origin=0 the coordinates are taken as
edges measured from 0, as they stand, which is how labelImg, CVAT and most converters write them.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError  # noqa: S405 - types only, defusedxml parses

import defusedxml.ElementTree
import numpy as np

from common.errors import DataError, did_you_mean
from common.files import text_lines
from common.sizes import Size
from dataset.image_check import IMAGE_SUFFIXES, OTHER_SUFFIXES
from dataset.imdb import AnnotatedImage, Part, require_inside

VOC_CLASSES = tuple(
    """
    aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep
    sofa train tvmonitor
    """.split()  # noqa: SIM905 - a list of words
)
DEFAULT_YEARS = ("2007", "2012")
DEFAULT_SET = "trainval"
IMAGES = "JPEGImages"
MAX_XML_BYTES = 8 << 20
_BOX_TAGS = ("xmin", "ymin", "xmax", "ymax")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Annotation:
    """One XML file: boxes (n, 4) float64 as written there, difficult (n,)."""

    path: Path
    image: Path
    size: Size | None
    names: tuple[str, ...]
    boxes: np.ndarray
    difficult: np.ndarray


class PascalVoc:
    """Reads all annotations of some image sets; images has them in the order of the set files.

    dropped describes the boxes that have no extent (xmax <= xmin or ymax <= ymin as written) and were left out; their
    number is logged. A name listed in several sets of one folder counts once.
    """

    def __init__(
        self,
        root: str | Path,
        years: Sequence[str] = (),
        image_sets: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
        pixel_origin: int = 1,
        skip_bad: bool = False,
        every_annotation: bool = False,
    ) -> None:
        """Reads everything but the images.

        years are for a VOCdevkit (2007 and 2012 unless given). image_sets are names of ImageSets/Main (trainval unless
        given; without an ImageSets folder every annotation): one for all years, several for one year, or one for
        each. every_annotation: without image_sets all of Annotations/, even if there is an ImageSets folder.
        class_names None takes VOC's twenty if they cover the annotations, else the names found, sorted. Anything
        missing, malformed or of an unknown class raises DataError naming the file. With skip_bad, annotation
        files that are missing or malformed are left out; `bad` holds the sentences that name them.
        """
        self.root = Path(root)
        self.bad: list[str] = []
        locate = _ImageFinder()
        listed = _listed(self.root, years, image_sets, every_annotation)
        annotations = list(self._annotations(listed, locate, skip_bad))
        self.class_names = tuple(class_names) if class_names else _choose_classes(annotations)
        self.images = [self._image(annotation, pixel_origin) for annotation in annotations]
        self.dropped = tuple(line for image in self.images for line in image.dropped)
        self.sources = [
            _set_path(folder, name or DEFAULT_SET) for folder, name in _folders(self.root, years, image_sets)
        ]
        self._report(annotations, pixel_origin)

    def _annotations(
        self, listed: Sequence[tuple[Path, str]], locate: "_ImageFinder", skip_bad: bool
    ) -> Iterator[_Annotation]:
        for folder, name in listed:
            try:
                yield _read(self.root, folder, name, locate)
            except DataError as error:
                if not skip_bad:
                    raise
                self.bad.append(str(error))
        if len(self.bad) == len(listed):
            raise DataError(f"no annotation can be used: {self.bad[0]}")

    def _image(self, annotation: _Annotation, pixel_origin: int) -> AnnotatedImage:
        kept = _has_extent(annotation.boxes)
        ids = [self._class_id(name, annotation.path) for name in annotation.names]
        edges = annotation.boxes - np.array([pixel_origin, pixel_origin, 0, 0])
        objects = np.column_stack([np.array(ids, np.float64), edges, annotation.difficult])[kept]
        name = annotation.image.relative_to(self.root).as_posix()
        return AnnotatedImage(name, annotation.image, objects, annotation.size, tuple(_without_extent(annotation)))

    def _class_id(self, name: str, path: Path) -> int:
        if name not in self.class_names:
            hint = did_you_mean(name, self.class_names)
            raise DataError(
                f"{path}: class {name!r} is not among the {len(self.class_names)} class names{hint}; "
                "add it to --class-names, leave its objects out with --only-class-names, or correct the annotation"
            )
        return self.class_names.index(name)

    def _report(self, annotations: Sequence[_Annotation], pixel_origin: int) -> None:
        if self.dropped:
            logger.warning("%d boxes without area were dropped, the first: %s", len(self.dropped), self.dropped[0])
        early = sum(int((annotation.boxes[:, :2] < pixel_origin).any(axis=1).sum()) for annotation in annotations)
        if early and pixel_origin == 1:
            logger.warning("%d boxes begin at pixel 0: if the annotations count from 0, use --pixel-origin 0", early)


def image_sets(root: str | Path, images: Sequence[AnnotatedImage], parts: Mapping[str, Part]) -> dict[Path, bytes]:
    """{ImageSets/Main/NAME.txt: its content} of the parts that were drawn of `images`, beside the annotations.

    trainval holds train and val, as in VOC. Names stand in the order of `images`. Each year of a VOCdevkit has files of
    its own, and none of a part without images of that year.
    """
    drawn = {name: {image.name for image in part.images} for name, part in parts.items()}
    sets = {**drawn, DEFAULT_SET: drawn.get("train", set()) | drawn.get("val", set())}
    lines: dict[Path, str] = {}
    for image in images:
        folder, _, name = image.name.rpartition(f"{IMAGES}/")
        for image_set in (one for one, names in sets.items() if image.name in names):
            path = _set_path(Path(root) / folder, image_set)
            lines[path] = f"{lines.get(path, '')}{Path(name).with_suffix('')}\n"
    return {path: text.encode("utf-8") for path, text in lines.items()}


def _listed(root: Path, years: Sequence[str], image_sets: Sequence[str], every: bool) -> list[tuple[Path, str]]:
    """(folder, name) of every image asked for, each once."""
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; --root names a VOCdevkit or a folder with Annotations/ and JPEGImages/"
        )
    found: dict[tuple[Path, str], None] = {}
    for folder, image_set in _folders(root, years, image_sets):
        for name in _names(folder, image_set, every):
            found[folder, name] = None
    return list(found)


def _folders(root: Path, years: Sequence[str], image_sets: Sequence[str]) -> list[tuple[Path, str | None]]:
    """Pairs of a folder with Annotations/ and an image set; None for the default one."""
    sets: list[str | None] = [*image_sets] or [None]
    if (root / "Annotations").is_dir():
        if years:
            raise DataError(f"{root} has no years: Annotations/ lies directly in it; leave out --year")
        return [(root, image_set) for image_set in sets]
    present = sorted(path.name[3:] for path in root.glob("VOC*") if (path / "Annotations").is_dir())
    if not present:
        raise DataError(
            f"{root} holds no annotations: neither Annotations/ nor VOC2007/Annotations/ is there; check --root and "
            "--year"
        )
    years = list(years or DEFAULT_YEARS)
    for year in years:
        if year not in present:
            raise DataError(f"{root / f'VOC{year}'}/Annotations is missing; --year can be {','.join(present)}")
    if len(years) == 1:
        years = years * len(sets)
    if len(sets) == 1:
        sets = sets * len(years)
    if len(sets) != len(years):
        raise DataError(f"--set has {len(sets)} names for {len(years)} years; give one, or one for each year")
    return [(root / f"VOC{year}", image_set) for year, image_set in zip(years, sets, strict=True)]


def _set_path(folder: Path, image_set: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{image_set}.txt"


def _names(folder: Path, image_set: str | None, every: bool) -> list[str]:
    """The image names (without suffix) of a set of one folder."""
    sets = folder / "ImageSets" / "Main"
    if image_set is None and (every or not (folder / "ImageSets").is_dir()):
        names = sorted(path.stem for path in (folder / "Annotations").glob("*.xml"))
        if not names:
            raise DataError(f"{folder / 'Annotations'} holds no annotations (*.xml)")
        return names
    path = _set_path(folder, image_set or DEFAULT_SET)
    require_inside(path, sets, sets)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in sets.glob("*.txt"))[:20]) or "none"
        raise DataError(f"{path} is missing; sets that are there (--set): {known}")
    names = [line.strip() for line in "\n".join(text_lines(path)).splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path} lists no images; choose another --set")
    return names


def _read(root: Path, folder: Path, name: str, locate: "_ImageFinder") -> _Annotation:
    """Parses one annotation file."""
    path = folder / "Annotations" / f"{name}.xml"
    require_inside(path, folder / "Annotations", root)
    tree = _parse(path)
    image = locate(folder / IMAGES, name)
    require_inside(image, folder / IMAGES, root)
    objects = tree.findall("object")
    boxes = [_box(element, path) for element in objects]
    return _Annotation(
        path,
        image,
        _size(tree, path),
        tuple(_class_name(element, path) for element in objects),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array([_number(element, "difficult", path, default=0.0) != 0 for element in objects], np.float64),
    )


def _parse(path: Path) -> Element:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_XML_BYTES + 1)
        if len(content) > MAX_XML_BYTES:
            raise DataError(f"{path}: larger than {MAX_XML_BYTES} bytes, this is not a VOC annotation")
        tree: Element = defusedxml.ElementTree.fromstring(content)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing although its image is listed; remove the name from the image set"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: not well-formed XML ({error}); correct the annotation") from error
    if tree.tag != "annotation":
        raise DataError(f"{path}: begins with <{tree.tag}> instead of <annotation>, this is not a VOC annotation")
    return tree


class _ImageFinder:
    """Finds images by their names without suffix; a folder is listed once, and only for names that are no .jpg."""

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, Path]] = {}

    def __call__(self, folder: Path, name: str) -> Path:
        """The image: JPEG or PNG in any spelling, else another format (packing names it as neither), else NAME.jpg,
        which packing names as missing."""
        usual = folder / f"{name}{IMAGE_SUFFIXES[0]}"
        if usual.is_file():
            return usual
        if usual.parent not in self._listed:
            self._listed[usual.parent] = _images_by_stem(usual.parent)
        return self._listed[usual.parent].get(Path(name).name, usual)


def _images_by_stem(folder: Path) -> dict[str, Path]:
    """{name without suffix: image} of a folder; of several the one with the first suffix, in lower case first."""
    ranks = {suffix: rank for rank, suffix in enumerate((*IMAGE_SUFFIXES, *OTHER_SUFFIXES))}
    found = [path for path in folder.glob("*") if path.suffix.lower() in ranks and path.is_file()]

    def order(path: Path) -> tuple[int, str]:
        return ranks[path.suffix.lower()], path.suffix.swapcase()

    return {path.stem: path for path in sorted(found, key=order, reverse=True)}


def _size(tree: Element, path: Path) -> Size | None:
    """(height, width), None if it is not given or 0."""
    element = tree.find("size")
    if element is None:
        return None
    height, width = (int(_number(element, tag, path, default=0.0)) for tag in ("height", "width"))
    return (height, width) if height > 0 and width > 0 else None


def _class_name(element: Element, path: Path) -> str:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{path}: an object has no <name>; correct the annotation")
    return name


def _box(element: Element, path: Path) -> list[float]:
    box = element.find("bndbox")
    if box is None:
        raise DataError(f"{path}: an object has no <bndbox>; correct the annotation")
    return [_number(box, tag, path) for tag in _BOX_TAGS]


def _number(element: Element, tag: str, path: Path, default: float | None = None) -> float:
    """The finite number in a child; the default if there is no such child."""
    text = element.findtext(tag)
    if text is None and default is not None:
        return default
    try:
        value = float(text or "")
        if np.isfinite(value):
            return value
    except ValueError:
        pass
    raise DataError(f"{path}: <{tag}> holds {text!r}, not a number; correct the annotation")


def _has_extent(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _without_extent(annotation: _Annotation) -> list[str]:
    return [
        f"{annotation.path}: object {row} ({annotation.names[row]}) "
        f"[{' '.join(f'{value:g}' for value in annotation.boxes[row])}] has no area or is inverted"
        for row in np.flatnonzero(~_has_extent(annotation.boxes))
    ]


def _choose_classes(annotations: Sequence[_Annotation]) -> tuple[str, ...]:
    found = {name for annotation in annotations for name in annotation.names}
    if found <= set(VOC_CLASSES):
        logger.info("class names of the annotations: the 20 of PASCAL VOC")
        return VOC_CLASSES
    names = tuple(sorted(found))
    logger.info("class names of the annotations: %d, sorted: %s", len(names), ",".join(names))
    return names
