"""PASCAL VOC annotations: XML files, in the folders that dataset/voc_folders.py finds.

Pixel convention. VOC counts pixels from 1 and its boxes include both ends (VOC2007 development kit): xmin = xmax = 1 is
the first column of pixels. The edges of such a box are therefore xmin - 1, ymin - 1, xmax, ymax, and a box over a whole
image of width w, (1, w), has edges 0 and w. That is pixel_origin=1. With pixel_origin=0 the coordinates are taken as
edges measured from 0, as they stand, which is how labelImg, CVAT and most converters write them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError  # noqa: S405 - types only, defusedxml parses

import defusedxml.ElementTree
import numpy as np

from common.errors import DataError, did_you_mean
from common.files import is_file, open_regular
from common.sizes import Size
from dataset.image_check import IMAGE_SUFFIXES, OTHER_SUFFIXES
from dataset.imdb import AnnotatedImage, Mistakes, files_in, require_inside
from dataset.voc_folders import XML, VocFolder, voc_names

VOC_CLASSES = tuple(
    """
    aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep
    sofa train tvmonitor
    """.split()  # noqa: SIM905 - a list of words
)
MAX_XML_BYTES = 8 << 20
_BOX_TAGS = ("xmin", "ymin", "xmax", "ymax")
_NOT_DIFFICULT = ("", "unspecified", "false", "no")  # what tools write into <difficult> for 0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Annotation:
    """One XML file: boxes (n, 4) float64 as written there, difficult (n,); unclear: how many of these are no number."""

    path: Path
    image: Path
    name: str
    size: Size | None
    names: tuple[str, ...]
    boxes: np.ndarray
    difficult: np.ndarray
    unclear: int


class PascalVoc:
    """Reads all annotations of some image sets; images has them in the order of the set files.

    dropped describes the boxes that have no extent (xmax <= xmin or ymax <= ymin as written) and were left out; their
    number is logged. A name listed in several sets of one folder counts once. found_names: the names of the objects,
    sorted.
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
        annotations: Path | None = None,
        images: Path | None = None,
    ) -> None:
        """Reads everything but the images.

        years are for a VOCdevkit (2007 and 2012 unless given). image_sets are names of ImageSets/Main (trainval unless
        given, or the one that is there; without an ImageSets folder every annotation): one for all years, several for
        one year, or one for each. every_annotation: without image_sets all annotations, even if there is an ImageSets
        folder. annotations and images: the folders with these, if they are no usual ones of the root. class_names None
        takes VOC's twenty if they cover the annotations, else the names found, sorted. Anything missing, malformed or
        of an unknown class raises DataError naming the files. With skip_bad, annotation files that are missing or
        malformed are left out; `bad` holds the sentences that name them.
        """
        self.root = Path(root)
        mistakes, locate = Mistakes(skip_bad), _ImageFinder()
        listed, self.sources = voc_names(self.root, years, image_sets, every_annotation, annotations, images)
        read: list[_Annotation] = []
        for folder, name in listed:
            with mistakes.collected():
                read.append(_read(folder, name, locate))
        mistakes.settle(len(read))
        self.bad = mistakes.lines
        self.found_names = tuple(sorted({name for annotation in read for name in annotation.names}))
        self.class_names = tuple(class_names) if class_names else _choose_classes(self.found_names)
        _refuse_unknown(read, self.class_names)
        self.images = [self._image(annotation, pixel_origin) for annotation in read]
        self.dropped = tuple(line for image in self.images for line in image.dropped)
        self._report(read, pixel_origin)

    def _image(self, annotation: _Annotation, pixel_origin: int) -> AnnotatedImage:
        kept = _has_extent(annotation.boxes)
        ids = np.array([self.class_names.index(name) for name in annotation.names], np.float64)
        edges = annotation.boxes - np.array([pixel_origin, pixel_origin, 0, 0])
        objects = np.column_stack([ids, edges, annotation.difficult])[kept]
        written = np.column_stack([np.arange(len(ids)), annotation.boxes])[kept]
        dropped = tuple(_without_extent(annotation))
        return AnnotatedImage(annotation.name, annotation.image, objects, annotation.size, dropped, written)

    def _report(self, annotations: Sequence[_Annotation], pixel_origin: int) -> None:
        if self.dropped:
            logger.warning("%d boxes without area were dropped, the first: %s", len(self.dropped), self.dropped[0])
        early = sum(int((annotation.boxes[:, :2] < pixel_origin).any(axis=1).sum()) for annotation in annotations)
        if early and pixel_origin == 1:
            logger.warning("%d boxes begin at pixel 0: if the annotations count from 0, use --pixel-origin 0", early)
        unclear = [annotation for annotation in annotations if annotation.unclear]
        if unclear:
            logger.warning(
                "%d objects have a <difficult> that is no number (as in %s) and count as not difficult",
                sum(annotation.unclear for annotation in unclear), unclear[0].path,
            )  # fmt: skip


def _read(folder: VocFolder, name: str, locate: "_ImageFinder") -> _Annotation:
    """Parses one annotation file."""
    path = folder.annotations / f"{name}{XML}"
    require_inside(path, folder.annotations, folder.root)
    tree = _parse(path)
    image = locate(folder.images, name, tree.findtext("filename") or "")
    require_inside(image, folder.images, folder.root)
    objects = tree.findall("object")
    boxes = [_box(element, path) for element in objects]
    difficult = [_difficult(element, path) for element in objects]
    return _Annotation(
        path,
        image,
        image.relative_to(folder.root if image.is_relative_to(folder.root) else folder.images).as_posix(),
        _size(tree, path),
        tuple(_class_name(element, path) for element in objects),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array([value or 0.0 for value in difficult], np.float64),
        difficult.count(None),
    )


def _parse(path: Path) -> Element:
    try:
        with open_regular(path) as file:
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
        if "encoding" in str(error):
            raise DataError(f"{path}: its encoding cannot be read ({error}); save it as UTF-8") from error
        raise DataError(f"{path}: not well-formed XML ({error}); correct the annotation") from error
    if tree.tag != "annotation":
        raise DataError(f"{path}: begins with <{tree.tag}> instead of <annotation>, this is not a VOC annotation")
    return tree


class _ImageFinder:
    """Finds images by their names without suffix; a folder is listed once, and only for names that are no .jpg."""

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, Path]] = {}

    def __call__(self, folder: Path, name: str, written: str) -> Path:
        """The image: of a format that is packed, in any spelling of its suffix, else of another one (packing says so),
        else the file that the annotation names (`written`), else NAME.jpg, which packing names as missing.

        The annotation of a.jpg may be called a.jpg.xml.
        """
        usual = folder / f"{name}{IMAGE_SUFFIXES[0]}"
        if is_file(usual):
            return usual
        images, own = self._images(usual.parent), Path(name).name
        suffixed = own if Path(own).suffix.lower() in (*IMAGE_SUFFIXES, *OTHER_SUFFIXES) else ""
        wanted = written.replace("\\", "/").rpartition("/")[2]
        names = (own, f"{suffixed}/", Path(suffixed).stem if suffixed else own, f"{wanted}/")
        likely = usual.with_name(suffixed) if suffixed else usual
        return next((images[key] for key in names if key in images), likely)

    def _images(self, folder: Path) -> dict[str, Path]:
        if folder not in self._listed:
            self._listed[folder] = _images_by_name(folder)
        return self._listed[folder]


def _images_by_name(folder: Path) -> dict[str, Path]:
    """{name without suffix, and name/: image} of a folder; of several the one with the first suffix, in lower case
    first."""
    ranks = {suffix: rank for rank, suffix in enumerate((*IMAGE_SUFFIXES, *OTHER_SUFFIXES))}
    found = [path for path in files_in(folder, ranks) if path.is_file()]

    def order(path: Path) -> tuple[int, str]:
        return ranks[path.suffix.lower()], path.suffix.swapcase()

    found.sort(key=order, reverse=True)
    return {f"{path.name}/": path for path in found} | {path.stem: path for path in found}


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


def _difficult(element: Element, path: Path) -> float | None:
    """0 or 1; None for a text that stands for 0, as Unspecified."""
    text = element.findtext("difficult")
    if text is not None and text.strip().lower() in _NOT_DIFFICULT:
        return None
    if text is not None and text.strip().lower() == "true":
        return 1.0
    return float(_number(element, "difficult", path, default=0.0) != 0)


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


def _refuse_unknown(annotations: Sequence[_Annotation], class_names: Sequence[str]) -> None:
    """DataError with all names of objects that are no class."""
    known = frozenset(class_names)
    first = {name: one.path for one in reversed(annotations) for name in one.names if name not in known}
    if not first:
        return
    name, path = next(reversed(first.items()))
    others = ", ".join(repr(other) for other in sorted(first) if other != name)
    raise DataError(
        f"{path}: class {name!r} is not among the {len(class_names)} class names{did_you_mean(name, class_names)}"
        f"{f' (nor are {others:.200})' if others else ''}; "
        "add it to --class-names, leave its objects out with --only-class-names, or correct the annotation"
    )


def _choose_classes(found: tuple[str, ...]) -> tuple[str, ...]:
    if set(found) <= set(VOC_CLASSES):
        logger.info("class names of the annotations: the 20 of PASCAL VOC")
        return VOC_CLASSES
    logger.info("class names of the annotations: %d, sorted: %s", len(found), ",".join(found))
    return found
