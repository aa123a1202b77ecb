"""What a family of networks is: one object that answers for its networks; symbol/registry.py has them all."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from boxes.anchor_fit import best_iou
from boxes.anchor_sets import AnchorSet, pixel_sizes
from boxes.assigners import Assigner
from common.errors import OptionError
from common.sizes import SMALLEST_SIDE, Size
from symbol.layers import Symbol
from symbol.network_options import CommonOptions


class FeatureMap(NamedTuple):
    """A map that heads read, for one input size."""

    name: str
    height: int
    width: int
    anchors: int  # of a place


class Family(ABC):
    """A family: what its networks are built from, which options they read, and what they can do.

    `row` is the entry of a network in the family's table `rows`, whatever the family keeps there; names outside of the
    table follow `pattern`. Everything that builds symbols takes (network, row, size, num_classes, options), options
    being an instance of the class `options`.

    Attributes:
        name: of the family, for messages.
        options: the class of the network options that it reads; those of other families' classes are refused.
        freeze: the words of the option freeze, and the regular expressions of parameter names that they mean.
        embedded: those of its options that hold the text of a user's file, so that a checkpoint does without it.
        pattern: what names that are not in the table look like, such as gluoncv:NAME; "" = there are none.
    """

    name: ClassVar[str]
    options: ClassVar[type[CommonOptions]]
    freeze: ClassVar[Mapping[str, str]]
    embedded: ClassVar[tuple[str, ...]] = ()
    pattern: ClassVar[str] = ""

    def __init__(self, rows: Mapping[str, Any]) -> None:
        """rows: {network: row}; symbol.registry.register_network adds to it."""
        self.rows = dict(rows)

    def has(self, network: str) -> bool:
        """Whether a name is one of this family's."""
        return network in self.rows or bool(self.prefix and network.startswith(self.prefix))

    @property
    def prefix(self) -> str:
        """What the names of `pattern` begin with, colon included; "" without one."""
        start, colon, _ = self.pattern.partition(":")
        return start + colon

    def row(self, network: str, size: Size, options: Any) -> Any:
        """What its functions take as row for an input of `size`; OptionError where there is none."""
        del size, options
        return self.rows[network]

    @abstractmethod
    def training(self, network: str, row: Any, size: Size, num_classes: int, options: Any) -> Symbol:
        """The training symbol: losses and, last, det."""

    @abstractmethod
    def detection(self, network: str, row: Any, size: Size, num_classes: int, options: Any) -> Symbol:
        """The symbol of det (B, N, 6), best first, for an input of `size`."""

    @abstractmethod
    def assigner(
        self, network: str, row: Any, size: Size, num_classes: int, options: Any, sizes: Sequence[Size] = ()
    ) -> Assigner | None:
        """What makes the labels of the training symbol, for further inputs `sizes`, too; None where the graph matches.

        OptionError where the network cannot be trained on these sizes.
        """

    @abstractmethod
    def label_names(self, options: Any) -> tuple[str, ...]:
        """Names of the labels that the training symbol reads."""

    @abstractmethod
    def feature_maps(self, network: str, row: Any, size: Size, options: Any) -> list[FeatureMap]:
        """The maps that the heads read in an input of `size`."""

    def anchor_set(self, network: str, row: Any, size: Size, options: Any) -> AnchorSet | None:
        """The anchors for an input of `size`, which tools/anchors.py fits; None: no option changes them.

        OptionError where the network cannot be trained on this size.
        """
        del network, row, size, options
        return None

    def reach(self, network: str, row: Any, size: Size, options: Any, boxes: np.ndarray) -> tuple[np.ndarray, float]:
        """(IoU (n,) of corner boxes (n, 4), normalised to an input of `size`, with their best anchor, at its place
        where it has one; the IoU from which an anchor learns an object). OptionError where there are no anchors."""
        anchors = self.anchor_set(network, row, size, options)
        if anchors is None:
            raise OptionError(f"--network {network}: {self.name} has no anchors; name another network")
        placed = anchors.placed_iou(boxes)
        found = best_iou(pixel_sizes(boxes, size), anchors.anchors()) if placed is None else placed
        return found, anchors.threshold

    def tap_names(self, network: str, row: Any, size: Size, options: Any) -> tuple[str, ...]:
        """Names, for a table of networks, of what the heads read from the body."""
        return tuple(found.name for found in self.feature_maps(network, row, size, options))

    def usual_sizes(self, network: str) -> tuple[int, ...]:
        """Sides of the square inputs that a network is usually trained on."""
        del network
        return (300, 512)

    def size_multiple(self, network: str) -> int:
        """What the sides of an input are multiples of in training on several sizes."""
        del network
        return SMALLEST_SIDE

    def only_size(self, network: str, data_shape: Any) -> str:
        """Why symbols for data_shape take no input of another size, as the end of a sentence; "" where they do."""
        del network, data_shape
        return ""

    def unused_options(self, network: str) -> frozenset[str]:
        """Options of the family that this network does not read."""
        del network
        return frozenset()

    def ineffective_options(self, options: Any) -> Iterator[tuple[tuple[str, ...], str]]:
        """Groups of options that others keep from having an effect, and why (`with --post-process multibox`)."""
        del options
        return iter(())

    def post_processing(self, options: Any) -> str:
        """What a manifest calls the way from predictions to det."""
        del options
        return "box_nms"

    def mean_losses(self, options: Any) -> bool:
        """Whether the training symbol's losses are means over what each device gets, not shares of the batch's sum."""
        del options
        return False

    def embedded_options(self, network: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options `embedded` of a network, read from the user's files unless `options` has them; DataError."""
        del network, options
        return {}

    def check_rebuilding(self, network: str, options: Mapping[str, Any], origin: str) -> None:
        """CheckpointError, naming `origin`, where options out of a checkpoint cannot build the network again."""
        del network, options, origin
