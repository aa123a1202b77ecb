"""What evaluate.py tells beside its numbers: how sure they are, whether another model differs, and which thresholds to
use; as lines and for its JSON file."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import DataError, OptionError
from config.options import option
from dataset.imdb import group_of
from evaluate.detections import Results
from evaluate.hits import Hits, hits_of
from evaluate.intervals import CONFIDENCE, POINT, Difference, Draws, Interval, differences, draw_values, intervals
from evaluate.thresholds import FALSE_ALARMS, GRID, Choice, Requirement, Tested, choose, parse_requirement, rounded
from evaluate.thresholds import sentences as threshold_sentences

PERCENT = f"{CONFIDENCE * 100:g} %"
IMAGES, GROUPS = "images", "groups"
MEANS = ("mAP", "AP", "AP50")
THRESHOLD_RULE = "voc"  # at one IoU threshold; the kinds of VOC judge alike


@dataclass(frozen=True)
class CertaintyOptions:
    """Options of evaluate.py about what its numbers are worth."""

    bootstrap: int = option(1000, f"resamples for the {PERCENT} intervals, 0 = no intervals", "certainty", minimum=0)
    group_by: str = option(
        "",
        "a regular expression; images whose names give the same text (that of its brackets, where it has any) are "
        "drawn together, as the frames of a film by '(.*)_\\d+'",
        "certainty",
    )
    compare: str = option(
        "", "another model, prefix, model folder or file of detections, which is measured beside this one", "certainty"
    )
    compare_epoch: str = option("auto", "epoch of --compare, as of --epoch", "certainty")
    require: tuple[str, ...] = option(
        (),
        "what score thresholds are to keep, such as 'recall(WBC) >= 0.98 @ 95%', 'precision(each) >= 0.9 @ 95%' or "
        "'false alarms per image <= 0.1 @ 95%'; exit status 1 where the images do not show it",
        "certainty",
        words="several",
    )


@dataclass(frozen=True)
class Rule:
    """How detections are judged: kinds of metrics, and IoU and difficult objects of VOC's."""

    kinds: Sequence[str]
    overlap: float
    use_difficult: bool


@dataclass(frozen=True)
class Certainty:
    """What is told.

    Attributes:
        lines: for the log.
        content: for the JSON file.
        kept: whether the images show all that was required.
    """

    lines: tuple[str, ...]
    content: dict[str, Any]
    kept: bool


def group_pattern(text: str) -> re.Pattern[str] | None:
    """The pattern of --group-by, None without one; OptionError for what is none."""
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise OptionError(f"--group-by {text}: is no regular expression ({error}); correct it") from error


def requirements_of(options: CertaintyOptions, class_names: Sequence[str] | None) -> list[Requirement]:
    """The requirements that were given; OptionError for one that cannot be read. Without names any class will do."""
    return [parse_requirement(text, class_names) for text in options.require]


def certainty_of(
    options: CertaintyOptions,
    results: Results,
    rule: Rule,
    name: str = "",
    other: Results | None = None,
    other_name: str = "",
) -> Certainty:
    """Everything that the options ask for.

    name: of the model; other, other_name: what --compare found in the same images, and how to call it. OptionError
    where its classes or images are others, DataError where --group-by matches no name.
    """
    if other:
        check_same_classes(options.compare, results.class_names, other.class_names)
        if [image.id for image in results.images] != [image.id for image in other.images]:
            raise OptionError(f"--compare {options.compare}: was measured on other images; leave --num-batch out")
    groups = _groups(results, group_pattern(options.group_by))
    unit = IMAGES if groups is None else GROUPS
    names = name, other_name or options.compare, unit
    lines: list[str] = []
    content: dict[str, Any] = {}
    if options.bootstrap:
        content["bootstrap"] = {"resamples": options.bootstrap, "unit": unit, "confidence": CONFIDENCE}
        for kind in rule.kinds:
            own = draw_values(_hits(results, kind, rule, groups), options.bootstrap)
            _tell_intervals(kind, own, options.bootstrap, unit, lines, content)
            if other:
                theirs = draw_values(_hits(other, kind, rule, groups), options.bootstrap)
                _tell_differences(kind, differences(own, theirs), names, lines, content)
    requirements = requirements_of(options, results.class_names)
    choice = choose(_hits(results, THRESHOLD_RULE, rule, groups), requirements)
    content |= threshold_content(choice, unit)
    lines += threshold_sentences(choice, unit)
    return Certainty(tuple(lines), content, choice.kept)


def _hits(results: Results, kind: str, rule: Rule, groups: np.ndarray | None) -> Hits:
    hits = hits_of(results, kind, rule.overlap, rule.use_difficult)
    return hits if groups is None else hits.grouped(groups)


def _groups(results: Results, pattern: re.Pattern[str] | None) -> np.ndarray | None:
    """(images,) the number of each image's group; None without a pattern."""
    if pattern is None:
        return None
    keys = [group_of(image.name, pattern) for image in results.images]
    if not any(key[0] for key in keys):
        example = f", as {results.images[0].name}" if results.images else ""
        raise DataError(f"--group-by {pattern.pattern}: matches no name{example}; correct it")
    numbers: dict[tuple[str, ...], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def check_same_classes(where: str, own: Sequence[str], other: Sequence[str]) -> None:
    """OptionError where --compare names a model of other classes."""
    if list(own) != list(other):
        raise OptionError(
            f"--compare {where}: it has the classes {', '.join(other)}, the first model {', '.join(own)}; "
            "compare models of the same classes"
        )


def _tell_intervals(
    kind: str, draws: Draws, resamples: int, unit: str, lines: list[str], content: dict[str, Any]
) -> None:
    found = intervals(draws)
    content.setdefault("intervals", {})[kind] = {name: _ends(one) for name, one in found.items()}
    width = max(len(name) for name in found)
    lines.append(f"{kind}, {PERCENT} intervals by {resamples} resamples of {draws.images} {unit}:")
    lines += [f"{name:<{width}}  {_shown(one)}" for name, one in found.items()]


def _tell_differences(
    kind: str, found: dict[str, Difference], names: tuple[str, str, str], lines: list[str], content: dict[str, Any]
) -> None:
    """names: of the two models, then of the unit."""
    own, other, unit = names
    part = {name: _ends(one.interval) | {"images_needed": _whole(one.needed)} for name, one in found.items()}
    said = {name: comparison_sentence(name, one, own, other, unit) for name, one in found.items() if name in MEANS}
    content.setdefault("comparison", {"other": other})[kind] = {"differences": part, "sentences": list(said.values())}
    lines += [f"{kind}: {sentence}" for sentence in said.values()]


def comparison_sentence(metric: str, found: Difference, own: str, other: str, unit: str = IMAGES) -> str:
    """What the difference of two models, `other` minus `own`, is worth, in points (hundredths)."""
    low, high = found.interval.low / POINT, found.interval.high / POINT
    ends = f"{PERCENT}: {low:.1f} to {high:.1f}"
    if found.same:
        return f"no difference: {own} and {other} have the same {metric} on every resample"
    if math.isnan(low):
        return f"no difference of {metric} can be told: {found.images} {unit} give no interval"
    if found.told:
        better, worse = (other, own) if found.interval.low > 0 else (own, other)
        ends = ends if found.interval.low > 0 else f"{PERCENT}: {-high:.1f} to {-low:.1f}"
        points = abs(found.interval.value) / POINT
        return f"{better} is better than {worse} by {points:.1f} points of {metric} ({ends})"
    text = f"no difference of {metric} can be told with {found.images} {unit} ({other} less {own}, points, {ends})"
    return text + (f"; about {rounded(found.needed)} would show 1 point" if found.needed > found.images else "")


def threshold_content(choice: Choice, unit: str = IMAGES) -> dict[str, Any]:
    """The keys thresholds and requirements of the JSON file; a threshold that is not shown is null."""
    said = threshold_sentences(choice, unit)
    tests = [_test_content(one, text) for one, text in zip(choice.tests, said, strict=True)]
    return {"thresholds": choice.thresholds, "requirements": tests}


def _test_content(one: Tested, sentence: str) -> dict[str, Any]:
    places = np.flatnonzero(one.kept)
    best = np.nanmin if one.requirement.measure == FALSE_ALARMS else np.nanmax
    return {
        "requirement": one.requirement.text,
        "class": one.class_name or None,
        "kept_by": [round(float(GRID[k]), 2) for k in places],
        "best_measured": None if np.isnan(one.measured).all() else float(best(one.measured)),
        "needed": None if one.kept.any() else _whole(one.needed),
        "sentence": sentence,
    }


def _ends(one: Interval) -> dict[str, float | None]:
    return {"value": _number(one.value), "low": _number(one.low), "high": _number(one.high)}


def _shown(one: Interval) -> str:
    if math.isnan(one.low):
        return f"{one.value:.4f}  -" if not math.isnan(one.value) else "-"
    return f"{one.value:.4f}  {one.low:.4f} to {one.high:.4f}"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _whole(value: float) -> int | None:
    return rounded(value) if math.isfinite(value) and value > 0 else None
