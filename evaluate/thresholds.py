"""Score thresholds that keep a requirement, such as "recall(WBC) >= 0.98 @ 95%", in the population of the images.

Fixed-sequence testing over a grid that is fixed beforehand (Angelopoulos et al., Learn then Test, 2021): thresholds are
tested one after the other at the full level, from the safe end until the first that fails. All that passed keep the
requirement at once, at the stated confidence, so that the best of them may be chosen by looking.

- recall: from the lowest threshold on
- false alarms: from the highest threshold down
- precision: the highest thresholds have too few detections to tell anything, so the sequences begin at each of
  PRECISION_STARTS and go down, each with its part of the error

The tests are those of evaluate/bounds.py: images, or groups of them, are the units. A unit of the population is taken
to have no more objects than the fullest one here, and no more false detections at a threshold than the worst one here
has at REFERENCE (or at that threshold, if it is lower).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import OptionError, did_you_mean
from evaluate.bounds import Evidence, refuted, units_needed
from evaluate.hits import Hits

GRID = (np.arange(1, 100) / 100).astype(np.float32).astype(np.float64)  # as Detector compares scores
PRECISION_STARTS = (0.9, 0.7, 0.5, 0.3)
REFERENCE = 0.1
RECALL, PRECISION, FALSE_ALARMS = "recall", "precision", "false alarms"
EACH = "each"  # every class by itself, all of them at the stated confidence
_FORM = re.compile(
    r"(?P<measure>recall|precision|false alarms)\s*(?:\((?P<first>.+)\))?\s*(?:per image)?\s*(?:\((?P<last>.+)\))?\s*"
    r"(?P<sign>>=|<=)\s*(?P<target>[0-9.]+)\s*@\s*(?P<level>[0-9.]+)\s*%"
)
_EXAMPLE = "'recall(WBC) >= 0.98 @ 95%', 'precision >= 0.9 @ 95%' or 'false alarms per image <= 0.1 @ 95%'"


@dataclass(frozen=True)
class Requirement:
    """What the population must keep.

    Attributes:
        text: as it was given.
        measure: RECALL, PRECISION or FALSE_ALARMS (per image).
        scope: a class, EACH of them, or "" = the detections of all classes together, with one threshold.
        target: the least recall or precision, the most false alarms.
        confidence: 0 to 1.
    """

    text: str
    measure: str
    scope: str
    target: float
    confidence: float


@dataclass(frozen=True)
class Counts:
    """What units have at each threshold of GRID: true and false detections (U, G), objects and images (U,)."""

    true: np.ndarray
    false: np.ndarray
    objects: np.ndarray
    images: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """(G,) 2 P R / (P + R); 0 without anything."""
        true, false = self.true.sum(axis=0), self.false.sum(axis=0)
        return 2 * true / np.maximum(true + false + self.objects.sum(), 1)

    def measured(self, measure: str) -> np.ndarray:
        """(G,) the measure on these images; nan where there is nothing to divide by."""
        true, false = self.true.sum(axis=0), self.false.sum(axis=0)
        out_of = {RECALL: self.objects.sum() + 0 * true, PRECISION: true + false, FALSE_ALARMS: self.images.sum()}
        what = false if measure == FALSE_ALARMS else true
        return np.divide(what, out_of[measure], out=np.full(len(what), np.nan), where=out_of[measure] > 0)


@dataclass(frozen=True)
class Tested:
    """A requirement on one class, or on all together, after the test.

    Attributes:
        requirement: what was asked.
        class_name: of the class, "" = all together.
        kept: (G,) which thresholds of GRID keep it.
        measured: (G,) the measure on these images.
        needed: units that would show it where none does; inf where the model does not reach it here.
    """

    requirement: Requirement
    class_name: str
    kept: np.ndarray
    measured: np.ndarray
    needed: float


def parse_requirement(text: str, class_names: Sequence[str] | None = None) -> Requirement:
    """The requirement of a text; OptionError for another form, an unknown class, or what nothing can keep."""
    found = _FORM.fullmatch(text.strip())
    if not found or (found["first"] and found["last"]):
        raise OptionError(f"--require {text!r:.100}: is no requirement; write {_EXAMPLE}")
    scope, measure = found["first"] or found["last"] or "", found["measure"]
    if class_names is not None and scope not in ("", EACH, *class_names):
        hint = did_you_mean(scope, class_names)
        raise OptionError(
            f"--require {text!r:.100}: there is no class {scope}{hint}; the model has {_list(class_names)}"
        )
    if found["sign"] != ("<=" if measure == FALSE_ALARMS else ">="):
        raise OptionError(f"--require {text!r:.100}: {measure} has a bound on the other side; write {_EXAMPLE}")
    return Requirement(text, measure, scope, *_numbers(text, measure, found["target"], found["level"]))


def _numbers(text: str, measure: str, target: str, level: str) -> tuple[float, float]:
    """Target and confidence."""
    try:
        bound, confidence = float(target), float(level) / 100
    except ValueError:
        raise OptionError(f"--require {text!r:.100}: {target} or {level} is no number; write {_EXAMPLE}") from None
    if bound <= 0 or (measure != FALSE_ALARMS and bound >= 1):
        limits = "above 0" if measure == FALSE_ALARMS else "between 0 and 1"
        raise OptionError(f"--require {text!r:.100}: no number of images shows a bound of {target}; give one {limits}")
    if not 0.5 <= confidence < 1:
        raise OptionError(f"--require {text!r:.100}: a confidence is 50% to less than 100%")
    return bound, confidence


def counts_of(hits: Hits, classes: Sequence[int], level: int = 0) -> Counts:
    """Counts of some classes together, by the IoU threshold number `level`."""
    units = len(hits.images)
    true, false = np.zeros((units, len(GRID))), np.zeros((units, len(GRID)))
    for one in (hits.classes[k] for k in classes):
        place = np.searchsorted(GRID, one.score, side="right")  # how many thresholds keep it
        for kept, out in ((one.true[level], true), (one.false[level], false)):
            flat = one.unit[kept] * (len(GRID) + 1) + place[kept]
            table = np.bincount(flat, minlength=units * (len(GRID) + 1)).reshape(units, len(GRID) + 1)
            out += np.cumsum(table[:, ::-1], axis=1)[:, ::-1][:, 1:]
    return Counts(true, false, np.sum([hits.classes[k].objects for k in classes], axis=0), hits.images)


def evidence_of(counts: Counts, measure: str, target: float) -> Evidence:
    """What speaks against a measure that is worse than its target."""
    below = np.minimum(np.arange(len(GRID)), int(np.searchsorted(GRID, REFERENCE)))
    most = np.maximum(counts.false.max(axis=0, initial=0.0)[below], 1.0)
    if measure == FALSE_ALARMS:
        trials = np.broadcast_to(counts.images[:, None], counts.false.shape)
        worst = most - target * counts.images.min(initial=1.0)
        return Evidence(trials, counts.false, target, np.maximum(worst, np.finfo(float).tiny))
    rate = 1 - target
    if measure == PRECISION:
        return Evidence(counts.true + counts.false, counts.false, rate, (1 - rate) * most)
    objects = np.broadcast_to(counts.objects[:, None], counts.true.shape)
    most = np.full(len(GRID), max(float(counts.objects.max(initial=0)), 1.0))
    return Evidence(objects, objects - counts.true, rate, (1 - rate) * most)


def kept_thresholds(evidence: Evidence, measure: str, alpha: float) -> np.ndarray:
    """(G,) bools: the thresholds of GRID that keep the target with a chance of 1 - alpha, all of them at once."""
    if measure == RECALL:
        return np.logical_and.accumulate(refuted(evidence, alpha))
    if measure == FALSE_ALARMS:
        return np.logical_and.accumulate(refuted(evidence, alpha)[::-1])[::-1]
    passed = refuted(evidence, alpha / len(PRECISION_STARTS))
    kept = np.zeros(len(GRID), bool)
    for start in np.searchsorted(GRID, np.array(PRECISION_STARTS, np.float32)):
        kept[: start + 1] |= np.logical_and.accumulate(passed[: start + 1][::-1])[::-1]
    return kept


def try_requirement(requirement: Requirement, hits: Hits) -> list[Tested]:
    """The requirement on all classes together, on its class, or on each class."""
    names = hits.class_names
    scopes: dict[str, list[int]] = {"": list(range(len(names)))}
    if requirement.scope in names:
        scopes = {requirement.scope: [names.index(requirement.scope)]}
    elif requirement.scope == EACH:
        scopes = {name: [k] for k, name in enumerate(names)}
    alpha = (1 - requirement.confidence) / len(scopes)
    return [_tested(requirement, name, counts_of(hits, some), alpha) for name, some in scopes.items()]


def _tested(requirement: Requirement, name: str, counts: Counts, alpha: float) -> Tested:
    measure = requirement.measure
    evidence = evidence_of(counts, measure, requirement.target)
    kept = kept_thresholds(evidence, measure, alpha)
    parts = len(PRECISION_STARTS) if measure == PRECISION else 1
    needed = 0.0 if kept.any() else units_needed(evidence, alpha / parts)
    return Tested(requirement, name, kept, counts.measured(measure), needed)


@dataclass(frozen=True)
class Choice:
    """Thresholds by class; None where what was required of the class is not shown, or not by one threshold."""

    thresholds: dict[str, float | None]
    tests: tuple[Tested, ...]
    units: int

    @property
    def kept(self) -> bool:
        """Whether every requirement is kept."""
        return None not in self.thresholds.values()


def choose(hits: Hits, requirements: Sequence[Requirement]) -> Choice:
    """The threshold of each class that has the best F1 of those that keep what is required of the class.

    A requirement on all classes together makes one threshold for all of them. Without any requirement it is the best
    F1 of the class; of equals the highest, and the lowest of GRID where nothing was found.
    """
    tests = [one for requirement in requirements for one in try_requirement(requirement, hits)]
    names = hits.class_names
    if any(not one.class_name for one in tests):
        allowed = np.logical_and.reduce([one.kept for one in tests])
        value = _best(counts_of(hits, range(len(names))), allowed)
        return Choice(dict.fromkeys(names, value), tuple(tests), len(hits.images))
    chosen = {}
    for k, name in enumerate(names):
        own = [one.kept for one in tests if one.class_name == name]
        chosen[name] = _best(counts_of(hits, [k]), np.logical_and.reduce([np.ones(len(GRID), bool), *own]))
    return Choice(chosen, tuple(tests), len(hits.images))


def _best(counts: Counts, allowed: np.ndarray) -> float | None:
    """The allowed threshold of the best F1."""
    if not allowed.any():
        return None
    f1 = np.where(allowed, counts.f1, -1.0)
    return round(float(GRID[len(f1) - 1 - int(np.argmax(f1[::-1]))]), 2)


def sentences(choice: Choice, unit: str = "images") -> list[str]:
    """What is told of each requirement; unit: what was drawn independently, images or groups."""
    return [_sentence(one, choice, unit) for one in choice.tests]


def _sentence(one: Tested, choice: Choice, unit: str) -> str:
    text = one.requirement.text + (f", {one.class_name}" if one.requirement.scope == EACH else "")
    if not one.kept.any():
        return f"{text}: {_why_not(one, choice.units, unit)}"
    places = np.flatnonzero(one.kept)
    held = f"held by thresholds from {_shown(int(places[0]))} to {_shown(int(places[-1]))}"
    chosen = choice.thresholds[one.class_name or next(iter(choice.thresholds))]
    if chosen is None:
        return f"{text}: {held}, but by none that holds the other requirements as well"
    measured = one.measured[int(np.argmin(np.abs(GRID - chosen)))]
    return f"{text}: {held}; {chosen:.2f} is chosen, with {measured:.4g} on these {choice.units} {unit}"


def _why_not(one: Tested, units: int, unit: str) -> str:
    values = -one.measured if one.requirement.measure == FALSE_ALARMS else one.measured
    if np.isnan(values).all():
        return f"these {units} {unit} have nothing to measure it on"
    best = int(np.nanargmax(values))
    found = f"{one.measured[best]:.4g} at the threshold {_shown(best)}"
    if math.isinf(one.needed):
        return f"the model does not keep it on these {units} {unit}: at best {found}"
    return f"{units} {unit} cannot show it (at best {found}); about {rounded(one.needed)} like these would"


def rounded(count: float) -> int:
    """A count with two digits, upwards."""
    step = 10 ** max(0, math.floor(math.log10(max(count, 1))) - 1)
    return math.ceil(count / step) * step


def _shown(place: int) -> str:
    return f"{GRID[place]:.2f}"


def _list(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
