"""Networks as Darknet lists them: sections, each the input of the next, with references to earlier ones.

References are those of .cfg files: a negative number counts back from the section itself, others count from the first
section after [net], which is 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

IMAGE_CHANNELS = 3
BOX_VALUES = 5  # x, y, w, h and objectness of a prediction, before its classes
MULTIPLE = 8  # of the channels of a network with another width
ACTIVATIONS = ("leaky", "linear")
# Limits of what a file may ask for; the largest networks in use have a tenth of these.
MAX_SECTIONS, MAX_CHANNELS, MAX_STRIDE, MAX_WEIGHTS = 1000, 16384, 1024, 1 << 30
Anchor = tuple[float, float]  # width, height in pixels


@dataclass(frozen=True)
class Convolutional:
    """Convolution that keeps H and W at stride 1; with batch normalisation it has no bias."""

    filters: int
    size: int
    stride: int = 1
    batch_normalize: bool = True
    activation: str = "leaky"


@dataclass(frozen=True)
class Shortcut:
    """Sum of the section before and another of the same shape."""

    from_: int = -3


@dataclass(frozen=True)
class Route:
    """Earlier sections, one after the other along the channels."""

    layers: tuple[int, ...]


@dataclass(frozen=True)
class MaxPool:
    """Maximum over size x size; at stride 1 it keeps H and W, an even size reaching further right and down."""

    size: int
    stride: int = 1


@dataclass(frozen=True)
class Upsample:
    """Every pixel `stride` times in both directions."""

    stride: int = 2


@dataclass(frozen=True)
class Yolo:
    """The section before is a map of raw predictions, for the anchors that mask chooses."""

    mask: tuple[int, ...]
    anchors: tuple[Anchor, ...]
    classes: int

    @property
    def own_anchors(self) -> tuple[Anchor, ...]:
        """The anchors of this map."""
        return tuple(self.anchors[k] for k in self.mask)


Section: TypeAlias = Convolutional | Shortcut | Route | MaxPool | Upsample | Yolo
Sections: TypeAlias = tuple[Section, ...]


@dataclass(frozen=True)
class Extent:
    """Channels of a section's output, and by how much it is smaller than the image."""

    channels: int
    stride: int


def trace(sections: Sequence[Section]) -> list[Extent]:
    """The extent of each section's output; ValueError names the first section that does not fit those before it."""
    if not 0 < len(sections) <= MAX_SECTIONS:
        raise ValueError(f"has {len(sections)} sections; a network has 1 to {MAX_SECTIONS}")
    extents: list[Extent] = []
    for number, section in enumerate(sections):
        try:
            extents.append(_extent(number, section, sections, extents))
        except ValueError as error:
            raise ValueError(f"section {number}, [{type(section).__name__.lower()}]: {error}") from error
    if not any(isinstance(section, Yolo) for section in sections):
        raise ValueError("has no [yolo] section, so that nothing is detected")
    weights = _weights(sections, extents)
    if weights > MAX_WEIGHTS:
        raise ValueError(f"has {weights} weights; at most {MAX_WEIGHTS} are built")
    return extents


def _weights(sections: Sequence[Section], extents: list[Extent]) -> int:
    before = [IMAGE_CHANNELS, *(extent.channels for extent in extents)]
    pairs = zip(sections, before, strict=False)
    return sum(s.filters * s.size**2 * channels for s, channels in pairs if isinstance(s, Convolutional))


def references(number: int, section: Section) -> tuple[int, ...]:
    """The numbers of the sections that section `number` reads; -1 is the image. ValueError for later ones."""
    if isinstance(section, Route):
        inputs = tuple(_absolute(number, layer) for layer in section.layers)
        if not inputs:
            raise ValueError("layers names no section")
        return inputs
    before = number - 1
    return (before, _absolute(number, section.from_)) if isinstance(section, Shortcut) else (before,)


def _absolute(number: int, layer: int) -> int:
    found = number + layer if layer < 0 else layer
    if not 0 <= found < number:
        raise ValueError(f"refers to section {layer}, which does not come before it")
    return found


def _extent(number: int, section: Section, sections: Sequence[Section], extents: list[Extent]) -> Extent:
    image = Extent(IMAGE_CHANNELS, 1)
    inputs = [image if k < 0 else extents[k] for k in references(number, section)]
    first = inputs[0]
    if len({extent.stride for extent in inputs}) > 1:
        raise ValueError(f"joins maps of strides {', '.join(str(extent.stride) for extent in inputs)}")
    match section:
        case Convolutional():
            _check_kernel(section)
            return _bounded(section.filters, first.stride * section.stride)
        case MaxPool():
            _check_pool(section)
            return _bounded(first.channels, first.stride * section.stride)
        case Upsample():
            _check_upsample(section, first)
            return _bounded(first.channels, first.stride // section.stride)
        case Shortcut():
            if len({extent.channels for extent in inputs}) > 1:
                raise ValueError(f"adds maps of {first.channels} and {inputs[1].channels} channels")
            return first
        case Route():
            return _bounded(sum(extent.channels for extent in inputs), first.stride)
        case Yolo():
            _check_head(section, sections[number - 1] if number else None)
            return first


def _bounded(channels: int, stride: int) -> Extent:
    if not 0 < channels <= MAX_CHANNELS or not 0 < stride <= MAX_STRIDE:
        raise ValueError(
            f"{channels} channels at stride {stride}: at most {MAX_CHANNELS} channels and stride {MAX_STRIDE} are built"
        )
    return Extent(channels, stride)


def _check_kernel(section: Convolutional) -> None:
    if section.size % 2 == 0:
        raise ValueError(f"size {section.size} is not built; use an odd size")


def _check_upsample(section: Upsample, data: Extent) -> None:
    if data.stride % section.stride:
        raise ValueError(f"makes a map larger than the image (stride {section.stride} after {data.stride})")


def _check_pool(section: MaxPool) -> None:
    """ValueError for windows whose place MXNet cannot reproduce: built are stride 1, odd sizes, and size 2 stride 2."""
    if not (section.stride == 1 or section.size % 2 or section.size == section.stride == 2):
        raise ValueError(f"size {section.size} with stride {section.stride} is not built; use an odd size, or 2 and 2")


def _check_head(section: Yolo, before: Section | None) -> None:
    """A map of predictions comes from a linear convolution with as many filters as its anchors and classes need."""
    if not section.mask or not all(0 <= k < len(section.anchors) for k in section.mask):
        raise ValueError(
            f"mask {','.join(map(str, section.mask))} does not choose among {len(section.anchors)} anchors"
        )
    if not isinstance(before, Convolutional) or before.batch_normalize or before.activation != "linear":
        raise ValueError("comes after something else than a linear convolution without batch_normalize")
    wanted = len(section.mask) * (BOX_VALUES + section.classes)
    if before.filters != wanted:
        raise ValueError(
            f"{len(section.mask)} anchors and {section.classes} classes need {wanted} filters before it, "
            f"not {before.filters}"
        )


def with_classes(sections: Sequence[Section], classes: int) -> Sections:
    """The same network for another number of classes: its yolo sections and the convolutions before them."""
    changed = list(sections)
    for number, section in enumerate(sections):
        if isinstance(section, Yolo):
            changed[number] = replace(section, classes=classes)
            before = sections[number - 1]
            assert isinstance(before, Convolutional)  # trace() has seen to it
            changed[number - 1] = replace(before, filters=len(section.mask) * (BOX_VALUES + classes))
    return tuple(changed)


def with_anchors(sections: Sequence[Section], anchors: Sequence[Anchor]) -> Sections:
    """The same network with other anchors, as many as it has; ValueError for another number."""
    count = len(next(section for section in sections if isinstance(section, Yolo)).anchors)
    if len(anchors) != count:
        raise ValueError(f"{len(anchors)} anchors; this network takes {count}")
    new = tuple(anchors)
    return tuple(replace(s, anchors=new) if isinstance(s, Yolo) else s for s in sections)


def with_width(sections: Sequence[Section], width: float) -> Sections:
    """The same network with channels times `width`, in multiples of 8; predictions keep theirs."""
    if width == 1:
        return tuple(sections)
    followers = (*sections[1:], None)
    return tuple(
        replace(section, filters=max(MULTIPLE, round(section.filters * width / MULTIPLE) * MULTIPLE))
        if isinstance(section, Convolutional) and not isinstance(after, Yolo)
        else section
        for section, after in zip(sections, followers, strict=True)
    )


def layer_names(sections: Sequence[Section]) -> list[str]:
    """body_N, head_N or pred_N for section number N: the classifier's layers, those after, and the predictors.

    The body ends at the last shortcut before the first map of predictions (Darknet-53: section 74); where there is no
    shortcut, at the convolution after the last pooling before that map (yolov3-tiny: section 12).
    """
    end = _body_end(sections)
    names = [f"{'body' if number <= end else 'head'}_{number}" for number in range(len(sections))]
    for number, section in enumerate(sections):
        if isinstance(section, Yolo):
            names[number - 1] = f"pred_{number - 1}"
    return names


def _body_end(sections: Sequence[Section]) -> int:
    first = next(number for number, section in enumerate(sections) if isinstance(section, Yolo))
    shortcuts = [k for k in range(first) if isinstance(sections[k], Shortcut)]
    pools = [k + 1 for k in range(first) if isinstance(sections[k], MaxPool)]
    return max(shortcuts or pools, default=-1)
