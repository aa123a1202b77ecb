"""The .json of a checkpoint: how it was trained and what its files must look like."""

from dataclasses import dataclass, field
from typing import Any

from common.signed_json import SignedKind
from config.augment_options import DEFAULT_FILL, FORCE, RESIZE_MODES
from config.groups import METRICS
from model.manifest import FileRecord

_LENGTHS = {"mean_pixels": 3, "std": 3, "data_shape": 2, "origin": 3}
_PIXEL_FIELDS = ("mean_pixels", "std", "resize_mode", "fill")


@dataclass(frozen=True)
class CheckpointMeta:
    """What is known of one checkpoint. The fields with a default were added later: it is what was done before.

    Attributes:
        epoch, num_update: epochs and updates done; of a snapshot in mid-epoch both are the updates.
        learning_rate: of the last update.
        scores: values of the losses and metrics by name, under `train` and `validation`; None where there is nothing
            to find.
        seed: of the run.
        class_names: names in the order of the ids.
        mean_pixels, std: RGB, of pixels 0..255; the network reads (pixel - mean) / std.
        data_shape: (height, width) of the network input.
        network, options: what the symbol is built from.
        batch_size: images of a batch on all devices.
        symbol_sha256: of the training symbol, without what no weight depends on.
        resize_mode, fill: how images fill the input, and the colour of the borders.
        rect: what the sides of rectangular validation batches are multiples of; 0 = all have one size.
        metrics, overlap, use_difficult: the rule of the validation.
        freeze_epochs: of --freeze-epochs. earlier_updates: those of num_update that an earlier stage made.
        plateau: state of the schedule of that name. origin: what a schedule by updates counts from (`Origin`).
        begun: epochs that the run found done when it began with weights alone.
        files: the set's .params and .optim.params by name; empty before they are written.
    """

    epoch: int
    num_update: int
    learning_rate: float
    scores: dict[str, dict[str, Any]]
    seed: int
    class_names: tuple[str, ...]
    mean_pixels: tuple[float, ...]
    data_shape: tuple[int, ...]
    network: str
    options: dict[str, Any]
    batch_size: int
    symbol_sha256: str
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize_mode: str = FORCE
    fill: int = DEFAULT_FILL
    rect: int = 0
    metrics: tuple[str, ...] = ("voc07",)
    overlap: float = 0.5
    use_difficult: bool = False
    freeze_epochs: int = 0
    earlier_updates: int = 0
    plateau: dict[str, Any] = field(default_factory=dict)
    origin: tuple[int, ...] = (0, 0, 0)
    begun: int = 0
    files: dict[str, FileRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """ValueError for a field with a value that no checkpoint has."""
        wrong = [name for name, length in _LENGTHS.items() if len(getattr(self, name)) != length]
        wrong += ["data_shape"] if any(side < 1 for side in self.data_shape) else []
        wrong += ["origin"] if any(number < 0 for number in self.origin[:2]) else []
        wrong += ["class_names"] if not self.class_names else []
        wrong += ["metrics"] if not self.metrics or not set(self.metrics) <= set(METRICS) else []
        wrong += ["resize_mode"] if self.resize_mode not in RESIZE_MODES else []
        if wrong:
            raise ValueError(f"field {wrong[0]} is wrong: {getattr(self, wrong[0])!r:.50}")

    @property
    def pixels(self) -> dict[str, Any]:
        """How an image becomes the network's input: arguments of the iterators, as `pixel_options` gives them."""
        return {name: getattr(self, name) for name in _PIXEL_FIELDS}


META_FILE = SignedKind(
    CheckpointMeta,
    "checkpoint",
    format=2,
    always=frozenset({"format", "files"}),
    infinite=True,  # the state of a new plateau
    max_bytes=16 << 20,
)


@dataclass(frozen=True)
class Best:
    """The best epoch, and the name and value of what it is best in."""

    epoch: int
    metric: str = ""
    score: float = 0.0


BEST_FILE = SignedKind(Best, "note of the best epoch", format=2)
