"""cfg.train and cfg.valid: flat settings of the iterator, as the classic config.py has them.

    cfg.train.rand_mirror_prob = 0
    DetRecordIter("train.rec", 32, 300, **cfg.train)

The names are those of mx.io.ImageDetRecordIter, which ignores a misspelt name; here it is refused.
"""

from collections import UserDict
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from common.errors import OptionError, did_you_mean
from config.augment_options import TrainAugment
from config.options import from_mapping, option
from machine.cpu import usable_threads

NUM_CROP_SAMPLER = "num_crop_sampler"
LINEAR = 1
# The augmentation parameters of ImageDetRecordIter that TrainAugment sets (src/io/image_det_aug_default.cc).
CLASSIC_NAMES = frozenset(
    (
        *("rand_crop_prob", "min_crop_scales", "max_crop_scales", "min_crop_aspect_ratios", "max_crop_aspect_ratios"),
        *("min_crop_overlaps", "max_crop_overlaps", "min_crop_sample_coverages", "max_crop_sample_coverages"),
        *("min_crop_object_coverages", "max_crop_object_coverages", "max_crop_trials"),
        *("crop_emit_mode", "emit_overlap_thresh", "rand_pad_prob", "max_pad_scale", "fill_value"),
        *("random_hue_prob", "max_random_hue", "random_saturation_prob", "max_random_saturation"),
        *("random_illumination_prob", "max_random_illumination", "random_contrast_prob", "max_random_contrast"),
        *("rand_mirror_prob", "inter_method"),
    )
)

NO_SAMPLER: dict[str, Any] = {f.name: () for f in fields(TrainAugment) if isinstance(f.default, tuple)}
_NEVER: dict[str, Any] = {f.name: 0.0 for f in fields(TrainAugment) if f.name.endswith("_prob")}
NO_AUGMENT = TrainAugment(**NO_SAMPLER, **_NEVER, max_pad_scale=1.0, inter_method=LINEAR)


@dataclass(frozen=True)
class ReadingOptions:
    """What cfg holds beside the augmentation; preprocess_threads is a limit, no more than the usable cores work."""

    shuffle: bool = option(True, "another order in every epoch")
    seed: int = option(233, "of order and augmentation", minimum=0)
    preprocess_threads: int = option(48, "workers or threads", minimum=1)


class Settings(UserDict[str, Any]):
    """A dict whose keys are fixed and are attributes too; a key that it does not have raises OptionError.

    Reading a misspelt attribute raises AttributeError.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__["data"] = dict(values)

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self.data:
            raise OptionError(f"cfg has no {name}{_suggestion(name, self.data)}")
        self.data[name] = value

    def __delitem__(self, name: str) -> None:
        raise OptionError(f"{name} cannot be removed from cfg; set it to 0 or False")

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("data", {})
        if name not in values:
            raise AttributeError(f"cfg has no {name}{_suggestion(name, values)}")
        return values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


@dataclass(frozen=True)
class ClassicConfig:
    """The two settings of the classic config.py: of training and of validation."""

    train: Settings
    valid: Settings


def _settings(augment: TrainAugment, reading: ReadingOptions) -> Settings:
    return Settings(asdict(augment) | {NUM_CROP_SAMPLER: augment.num_crop_sampler} | asdict(reading))


cfg = ClassicConfig(
    train=_settings(TrainAugment(), ReadingOptions()),
    valid=_settings(NO_AUGMENT, ReadingOptions(shuffle=False, seed=0, preprocess_threads=32)),
)


def iterator_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments augment, shuffle, seed and workers of either engine's iterator for cfg.train or cfg.valid.

    num_crop_sampler 0 drops the crop samplers; nothing random and linear interpolation is augment=None. OptionError
    for unknown names, wrong values, and another number of samplers than the tuples have entries.
    """
    values = dict(settings)
    samplers = values.pop(NUM_CROP_SAMPLER, None)
    names = {field.name for field in fields(ReadingOptions)}
    reading = from_mapping(ReadingOptions, {name: values.pop(name) for name in names & values.keys()}, "cfg")
    if samplers == 0:
        values |= NO_SAMPLER
    augment = from_mapping(TrainAugment, values, "cfg")
    if samplers not in (None, augment.num_crop_sampler):
        raise OptionError(f"num_crop_sampler is {samplers}, but the crop settings have {augment.num_crop_sampler} rows")
    return {
        "augment": None if _changes_nothing(augment) else augment,
        "shuffle": reading.shuffle,
        "seed": reading.seed,
        "workers": min(reading.preprocess_threads, usable_threads()),
    }


def quiet_settings() -> dict[str, Any]:
    """Settings with which nothing is random, as mx.io.ImageDetRecordIter has them where none is given."""
    return asdict(NO_AUGMENT) | {"shuffle": False, "seed": 0}


def _changes_nothing(augment: TrainAugment) -> bool:
    probabilities = (getattr(augment, field.name) for field in fields(augment) if field.name.endswith("_prob"))
    return augment.inter_method == LINEAR and not (any(probabilities) or augment.affine or augment.hsv)


def classic_arguments(augment: TrainAugment | None) -> dict[str, Any]:
    """The augmentation as arguments of mx.io.ImageDetRecordIter; None = cfg.valid.

    OptionError names what the C++ augmenter cannot do: nearest-neighbour interpolation, a crop of fixed scale, and
    options of later date.
    """
    augment = augment or NO_AUGMENT
    for field in fields(augment):
        if field.name not in CLASSIC_NAMES and getattr(augment, field.name) != _default(field):
            raise OptionError(f"{field.name} is unknown to the native engine; use --data-engine python")
    if augment.inter_method == 0:
        raise OptionError(
            "inter_method 0 (nearest) is unknown to the native engine; use another or --data-engine python"
        )
    if any(a >= b for a, b in zip(augment.min_crop_scales, augment.max_crop_scales, strict=True)):
        raise OptionError(
            "the native engine needs min_crop_scales below max_crop_scales; change them or use --data-engine python"
        )
    values = {name: getattr(augment, name) for name in CLASSIC_NAMES}
    return {name: value for name, value in values.items() if value != ()} | {NUM_CROP_SAMPLER: augment.num_crop_sampler}


def _default(field: Any) -> Any:
    return field.default_factory() if field.default is MISSING else field.default


def _suggestion(name: str, known: Mapping[str, Any]) -> str:
    return did_you_mean(name, known) or f"; its names: {', '.join(known)}"
