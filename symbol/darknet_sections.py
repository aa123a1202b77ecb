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
ACTIVATIONS = ("leaky", "linear", "logistic", "mish", "relu", "relu6", "swish")
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
    groups: int = 1


@dataclass(frozen=True)
class Shortcut:
    """Sum of the section before and another of its height and width: of as many first channels as both have.

    Further channels are those of the section before (Wang et al. 2019, Enriching Variety of Layer-wise Learning
    Information by Gradient Combination: partial residual networks).
    """

    from_: int = -3
    activation: str = "linear"


@dataclass(frozen=True)
class Route:
    """Earlier sections, one after the other along the channels; of each the part group_id of `groups` parts."""

    layers: tuple[int, ...]
    groups: int = 1
    group_id: int = 0


@dataclass(frozen=True)
class MaxPool:
    """Maximum over size x size; at stride 1 it keeps H and W, an even size reaching further right and down."""

    size: int
    stride: int = 1


@dataclass(frozen=True)
class AvgPool:
    """Mean of each channel: one place for the whole image."""


@dataclass(frozen=True)
class Dropout:
    """Drops a share of the values while it is trained."""

    probability: float = 0.5


@dataclass(frozen=True)
class ScaleChannels:
    """An earlier section times the section before, which has one place and a number for each channel."""

    from_: int
    activation: str = "linear"


@dataclass(frozen=True)
class Sam:
    """The section before times an earlier one of the same shape."""

    from_: int
    activation: str = "linear"


@dataclass(frozen=True)
class Upsample:
    """Every pixel `stride` times in both directions."""

    stride: int = 2


@dataclass(frozen=True)
class Yolo:
    """The section before is a map of raw predictions, for the anchors that mask chooses.

    scale_x_y: a centre lies in its cell and up to (scale_x_y - 1) / 2 cells beyond it. new_coords: sides are the
    anchor's times (2 sigmoid)^2 instead of exp, and the convolution before has the logistic function that is the
    sigmoid of all values (Wang et al. 2021, Scaled-YOLOv4).
    """

    mask: tuple[int, ...]
    anchors: tuple[Anchor, ...]
    classes: int
    scale_x_y: float = 1.0
    new_coords: bool = False

    @property
    def own_anchors(self) -> tuple[Anchor, ...]:
        """The anchors of this map."""
        return tuple(self.anchors[k] for k in self.mask)


Joining: TypeAlias = Shortcut | ScaleChannels | Sam  # the section before and that of from_
Section: TypeAlias = Convolutional | Joining | Route | MaxPool | AvgPool | Dropout | Upsample | Yolo
Sections: TypeAlias = tuple[Section, ...]


def section_name(section: Section) -> str:
    """What stands between the brackets of a .cfg."""
    return "scale_channels" if isinstance(section, ScaleChannels) else type(section).__name__.lower()


@dataclass(frozen=True)
class Extent:
    """Channels of a section's output, and by how much it is smaller than the image; 0 = it has one place."""

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
            raise ValueError(f"section {number}, [{section_name(section)}]: {error}") from error
    _check_readers(sections)
    if not any(isinstance(section, Yolo) for section in sections):
        raise ValueError("has no [yolo] section, so that nothing is detected")
    weights = _weights(sections, extents)
    if weights > MAX_WEIGHTS:
        raise ValueError(f"has {weights} weights; at most {MAX_WEIGHTS} are built")
    return extents


def _check_readers(sections: Sequence[Section]) -> None:
    """ValueError for a section that reads predictions whose logistic function is left to their yolo section."""
    deferred = {k - 1 for k, section in enumerate(sections) if isinstance(section, Yolo) and section.new_coords}
    deferred |= {k + 1 for k in deferred}
    for number, section in enumerate(sections):
        read = deferred.intersection(references(number, section))
        if read and not isinstance(section, Yolo):
            raise ValueError(f"section {number}, [{section_name(section)}]: reads predictions of section {min(read)}")


def _weights(sections: Sequence[Section], extents: list[Extent]) -> int:
    before = [IMAGE_CHANNELS, *(extent.channels for extent in extents)]
    pairs = zip(sections, before, strict=False)
    return sum(s.filters * s.size**2 * channels // s.groups for s, channels in pairs if isinstance(s, Convolutional))


def references(number: int, section: Section) -> tuple[int, ...]:
    """The numbers of the sections that section `number` reads; -1 is the image. ValueError for later ones."""
    if isinstance(section, Route):
        inputs = tuple(_absolute(number, layer) for layer in section.layers)
        if not inputs:
            raise ValueError("layers names no section")
        return inputs
    before = number - 1
    return (before, _absolute(number, section.from_)) if isinstance(section, Joining) else (before,)


def _absolute(number: int, layer: int) -> int:
    found = number + layer if layer < 0 else layer
    if not 0 <= found < number:
        raise ValueError(f"refers to section {layer}, which does not come before it")
    return found


def _extent(number: int, section: Section, sections: Sequence[Section], extents: list[Extent]) -> Extent:
    image = Extent(IMAGE_CHANNELS, 1)
    inputs = [image if k < 0 else extents[k] for k in references(number, section)]
    first = inputs[0]
    if len({extent.stride for extent in inputs}) > 1 and not isinstance(section, ScaleChannels):
        raise ValueError(f"joins maps of strides {', '.join(str(extent.stride) for extent in inputs)}")
    match section:
        case Convolutional():
            _check_convolution(section, first)
            return _bounded(section.filters, first.stride * section.stride)
        case MaxPool():
            _check_map(first)
            return _bounded(first.channels, first.stride * section.stride)
        case AvgPool():
            return Extent(first.channels, 0)
        case Upsample():
            _check_upsample(section, first)
            return _bounded(first.channels, first.stride // section.stride)
        case ScaleChannels() | Sam():
            return _product(section, first, inputs[1])
        case Route():
            return _bounded(sum(_part(section, extent.channels) for extent in inputs), first.stride)
        case Yolo():
            _check_map(first)
            _check_head(section, sections[number - 1] if number else None)
    return first


def _bounded(channels: int, stride: int) -> Extent:
    if not 0 < channels <= MAX_CHANNELS or not 0 <= stride <= MAX_STRIDE:
        raise ValueError(
            f"{channels} channels at stride {stride}: at most {MAX_CHANNELS} channels and stride {MAX_STRIDE} are built"
        )
    return Extent(channels, stride)


def _check_convolution(section: Convolutional, data: Extent) -> None:
    if section.size % 2 == 0:
        raise ValueError(f"size {section.size} is not built, odd sizes are")
    for what, channels in (("filters", section.filters), ("channels", data.channels)):
        if channels % section.groups:
            raise ValueError(f"{channels} {what} cannot be divided into {section.groups} groups")


def _check_map(data: Extent) -> None:
    if not data.stride:
        raise ValueError("comes after a mean over the whole image, which is no map")


def _check_upsample(section: Upsample, data: Extent) -> None:
    _check_map(data)
    if data.stride % section.stride:
        raise ValueError(f"makes a map larger than the image (stride {section.stride} after {data.stride})")


def _product(section: Section, before: Extent, other: Extent) -> Extent:
    """The extent of a [scale_channels] or [sam]."""
    if isinstance(section, ScaleChannels) and before.stride:
        raise ValueError("comes after a map; built is what scales channels, after [avgpool]")
    if before.channels != other.channels:
        raise ValueError(f"multiplies maps of {before.channels} and {other.channels} channels")
    return other


def _part(section: Route, channels: int) -> int:
    """Channels that a route takes from a map."""
    if channels % section.groups or section.group_id >= section.groups:
        raise ValueError(f"group {section.group_id} of {section.groups} cannot be taken of {channels} channels")
    return channels // section.groups


def _check_head(section: Yolo, before: Section | None) -> None:
    """A map of predictions comes from a convolution with as many filters as its anchors and classes need: a linear one,
    with new_coords a logistic one."""
    if not section.mask or not all(0 <= k < len(section.anchors) for k in section.mask):
        raise ValueError(
            f"mask {','.join(map(str, section.mask))} does not choose among {len(section.anchors)} anchors"
        )
    wanted_activation = "logistic" if section.new_coords else "linear"
    if not isinstance(before, Convolutional) or before.batch_normalize or before.activation != wanted_activation:
        raise ValueError(f"comes after something else than a {wanted_activation} convolution without batch_normalize")
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
    """The same network with channels times `width`, in multiples of 8; predictions keep theirs.

    A depthwise convolution, of one filter in each group, stays one.
    """
    if width == 1:
        return tuple(sections)
    followers = (*sections[1:], None)
    return tuple(
        _widened(section, width) if isinstance(section, Convolutional) and not isinstance(after, Yolo) else section
        for section, after in zip(sections, followers, strict=True)
    )


def _widened(section: Convolutional, width: float) -> Convolutional:
    filters = max(MULTIPLE, round(section.filters * width / MULTIPLE) * MULTIPLE)
    return replace(section, filters=filters, groups=filters if section.groups == section.filters else section.groups)


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
