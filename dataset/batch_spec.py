"""What batches are made: BatchSpec says what is wanted, BatchPlan what both engines know once the record is open.

The classic arguments of DetRecordIter, settings by their names in cfg and labels by their width, become a BatchSpec.
"""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from boxes.assigners import Assigner
from common.errors import OptionError, did_you_mean
from common.sizes import DataShape, Size, input_size
from config.augment_options import DEFAULT_FILL, FORCE, LETTERBOX, TrainAugment
from config.config import cfg, iterator_options, quiet_settings
from dataset.input_sizes import Rectangles, find_rectangles
from dataset.labels import HEADER_WIDTH, OBJECT_WIDTH
from dataset.letterbox import Resize
from dataset.record_source import open_source
from dataset.samples import LABEL, BatchLayout, SampleMaker, label_rows
from machine.cpu import usable_threads

AHEAD = 2  # batches made ahead, beside those of the current group
MEAN_PIXELS = (123, 117, 104)  # RGB, the classic train.py's


@dataclass(frozen=True)
class BatchSpec:
    """Which batches of which record; OptionError for values that do not fit together.

    Attributes:
        path_imgrec: the .rec file, with .idx and sidecar .json beside it if there are any.
        batch_size: B.
        data_shape: side, (H, W) or (3, H, W).
        augment: random views for training; None = the whole image resized bilinearly (the classic cfg.valid).
        mean_pixels, std: RGB, a number stands for three; pixels become (value - mean) / std.
        max_objects: M; None = as many as the record with most objects has, at least 1.
        num_classes: a label with another class is an error; None = the sidecar's.
        assigner: makes the targets of a network; None = label alone.
        shuffle: another order in every epoch.
        seed, epoch: decide order and augmentation.
        workers: processes (native: threads); None = usable cores, 0 = work in this process (to debug).
        num_parts, part_index: serve one of num_parts shards.
        label_name: name of the first label.
        path_imglist: a .lst whose labels replace those of the records with the same ids; lines of other records do
            not matter. None or "" = the record's own labels.
        resize_mode: force = the image, or its crop, is stretched to the input; letterbox = it keeps its proportions
            and has borders of the colour `fill` (0 to 255).
        accumulate: batches whose gradients make one update together. All of them are made before the first is
            served: memory holds these and AHEAD more.
        warmup_accumulate, warmup_end: the same for the epochs before the one of the number warmup_end.
        sizes: inputs (H, W) of which each group has one, chosen by (seed, epoch, number of the group); () = always
            data_shape. Memory is reserved for the largest.
        rect: for letterbox: the order is that of the images' proportions, and each batch has the smallest input, in
            multiples of `rect` pixels, in which its images are as large as in data_shape (dataset/input_sizes.py);
            data_shape's sides must be such multiples. With shuffle the batches come in another order in every epoch,
            and images of equal size change places. 0 = one size.
        mosaic_end: in this epoch and later ones samples show one record each, without mosaics and mixtures; None =
            there is no such epoch.
        left_out: records that cannot be read and may be left out, at most: they become rows of padding
            (--bad-records skip:N); 0 = the first one raises DataError.
    """

    path_imgrec: str | Path
    batch_size: int
    data_shape: DataShape
    _: KW_ONLY
    augment: TrainAugment | None
    mean_pixels: float | Sequence[float] = MEAN_PIXELS
    std: float | Sequence[float] = (1, 1, 1)
    max_objects: int | None = None
    num_classes: int | None = None
    assigner: Assigner | None = None
    shuffle: bool = False
    seed: int = 0
    epoch: int = 0
    workers: int | None = None
    num_parts: int = 1
    part_index: int = 0
    label_name: str = LABEL
    path_imglist: str | Path | None = None
    resize_mode: str = FORCE
    fill: int = DEFAULT_FILL
    accumulate: int = 1
    warmup_accumulate: int = 1
    warmup_end: int = 0
    sizes: Sequence[Size] = ()
    rect: int = 0
    mosaic_end: int | None = None
    left_out: int = 0

    def __post_init__(self) -> None:
        """Checks what can be checked without the record."""
        input_size(self.data_shape, smallest=1)
        if min(self.accumulate, self.warmup_accumulate) < 1:
            raise OptionError(
                f"accumulate {min(self.accumulate, self.warmup_accumulate)}: an update needs at least one batch"
            )
        if self.batch_size < 1 or self.num_parts < 1 or not 0 <= self.part_index < self.num_parts:
            raise OptionError(
                f"batch_size {self.batch_size} and part {self.part_index} of {self.num_parts} do not make batches"
            )
        if self.rect:
            self._check_rectangular()
        if type(self.assigner).__module__ == "__main__":
            raise OptionError(
                f"{type(self.assigner).__name__} is defined in the script itself, where no worker can import it; move "
                "it to a module of its own"
            )

    @property
    def size(self) -> Size:
        """(H, W) of data_shape."""
        return input_size(self.data_shape, smallest=1)

    def group_size(self, epoch: int) -> int:
        """Batches of an update in the epoch of this number; the last group of an epoch may be smaller."""
        return self.warmup_accumulate if epoch < self.warmup_end else self.accumulate

    @property
    def largest_group(self) -> int:
        """Batches of an update in any epoch, at most."""
        return max(self.accumulate, self.warmup_accumulate if self.warmup_end else 1)

    def _check_rectangular(self) -> None:
        """OptionError where batches by proportions cannot be."""
        refused = {
            f"--resize-mode {self.resize_mode}": self.resize_mode != LETTERBOX,
            "--mosaic-prob": self.augment is not None and self.augment.mosaic_prob > 0,
            "--multi-scale": bool(self.sizes),
            f"{self.num_parts} parts of a record": self.num_parts > 1,
        }
        for name, is_given in refused.items():
            if is_given:
                raise OptionError(
                    f"--rect and --rect-val: batches by proportions need --resize-mode {LETTERBOX} and no other "
                    f"choice of the inputs, not {name}"
                )


@dataclass(frozen=True)
class BatchPlan:
    """A spec whose record is open.

    Attributes:
        spec: what was asked for.
        class_names: from the sidecar, None without one.
        maker: makes the samples; its size is that of data_shape, with `rect` that of the largest batch.
        layout: of the batches in memory.
        sizes: (H, W) of which each group has one.
        rectangles: order and inputs with `rect`, otherwise None.
        workers: their number.
    """

    spec: BatchSpec
    class_names: tuple[str, ...] | None
    maker: SampleMaker
    layout: BatchLayout
    sizes: tuple[Size, ...]
    rectangles: Rectangles | None
    workers: int

    @property
    def slots(self) -> int:
        """Batches that are in memory at once."""
        return self.spec.largest_group + AHEAD

    @property
    def memory(self) -> int:
        """Bytes of these batches."""
        return self.slots * self.layout.slot_bytes()


def plan_batches(spec: BatchSpec) -> BatchPlan:
    """Opens the record.

    OptionError for a record that does not fit the spec; DataError for a damaged record file, sidecar or list, or a list
    without a line for a record.
    """
    source = open_source(spec.path_imgrec, spec.num_classes, spec.max_objects, spec.path_imglist, bool(spec.left_out))
    if len(source.reader) < spec.num_parts:
        raise OptionError(f"{spec.path_imgrec} holds {len(source.reader)} records, too few for {spec.num_parts} parts")
    rectangles = (
        find_rectangles(source.reader, spec.batch_size, spec.size, spec.rect, bool(spec.left_out))
        if spec.rect
        else None
    )
    size = rectangles.largest if rectangles else spec.size
    maker = SampleMaker(
        reader=source.reader,
        size=size,
        augment=spec.augment,
        mean=_channels("mean_pixels", spec.mean_pixels),
        std=_channels("std", spec.std),
        max_objects=source.max_objects,
        num_classes=source.num_classes,
        assigner=_with_room(spec.assigner, label_rows(source.max_objects, spec.augment)),
        seed=spec.seed,
        resize=Resize(spec.resize_mode, spec.fill),
        mosaic_end=spec.mosaic_end,
        skips_bad=spec.left_out > 0,
    )
    sizes = tuple(input_size(one, smallest=1) for one in spec.sizes) or (size,)
    inputs = (size, *(rectangles.sizes if rectangles else sizes))
    return BatchPlan(
        spec=spec,
        class_names=source.class_names,
        maker=maker,
        layout=BatchLayout(spec.batch_size, {one: maker.resized(one).shapes() for one in inputs}),
        sizes=sizes,
        rectangles=rectangles,
        workers=min(usable_threads(), spec.batch_size) if spec.workers is None else spec.workers,
    )


def _channels(name: str, values: float | Sequence[float]) -> np.ndarray:
    try:
        array = np.array(values, np.float32)
    except (TypeError, ValueError):  # texts, rows of different lengths
        array = np.empty(0, np.float32)
    if array.ndim == 0:
        array = np.repeat(array, 3)
    if array.shape != (3,) or not np.isfinite(array).all() or (name == "std" and not (array > 0).all()):
        raise OptionError(f"{name} {values} is not one number for each of red, green, blue; give three, or one for all")
    return array


def _with_room(assigner: Assigner | None, count: int) -> Assigner | None:
    """The assigner with room for images of `count` objects; one without for_objects() has arrays of its own size."""
    adapt = getattr(assigner, "for_objects", None)
    return adapt(count) if adapt else assigner


BATCH_FIELDS = frozenset(field.name for field in fields(BatchSpec))


def classic_spec(
    path_imgrec: str | Path, batch_size: int, data_shape: DataShape, label_pad_width: int = 0, **more: Any
) -> BatchSpec:
    """The spec of a call of DetRecordIter, whose docstring says what the arguments mean.

    OptionError for an unknown name, for settings of cfg beside augment, and for what iterator_options and BatchSpec
    refuse.
    """
    unknown = next((name for name in more if name not in BATCH_FIELDS and name not in cfg.train), None)
    if unknown:
        known = (*BATCH_FIELDS, *cfg.train, "label_pad_width")
        raise OptionError(f"the iterator has no argument {unknown!r}{did_you_mean(unknown, known)}")
    if label_pad_width > 0:
        more["max_objects"] = _rows(label_pad_width, more.get("max_objects"))
    settings = {name: value for name, value in more.items() if name in cfg.train}
    others = {name: value for name, value in more.items() if name not in settings}
    return BatchSpec(path_imgrec, batch_size, data_shape, **_views(settings, "augment" in others) | others)


def _views(settings: Mapping[str, Any], has_augment: bool) -> dict[str, Any]:
    """The fields of BatchSpec that settings of cfg mean; what is not among them does nothing, as in C++."""
    if has_augment:
        beside = next((name for name in settings if name not in BATCH_FIELDS), None)
        if beside:
            raise OptionError(f"augment and {beside} exclude each other; give one TrainAugment, or settings of cfg")
        return dict(settings)
    found = iterator_options(quiet_settings() | dict(settings))
    return found if "preprocess_threads" in settings else found | {"workers": None}


def _rows(label_pad_width: int, max_objects: int | None) -> int:
    """Rows of the label for so many numbers: the header, and the numbers of each object."""
    rows = (label_pad_width - HEADER_WIDTH) // OBJECT_WIDTH
    if max_objects is not None:
        raise OptionError("label_pad_width and max_objects exclude each other; give one of them")
    if rows < 1:
        least = HEADER_WIDTH + OBJECT_WIDTH
        raise OptionError(f"label_pad_width {label_pad_width} has no room for an object; give {least} or more, or 0")
    return rows
