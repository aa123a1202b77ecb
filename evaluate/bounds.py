"""Tests that a rate is kept in the population from which images were drawn, valid for any number of images.

A unit (an image, or a group of images) has trials and failures: objects and missed ones, detections and false ones, or
images and false detections. The rate is the ratio of their means. The failures of one unit may depend on one another in
any way; units are drawn independently. That the rate is `rate` or more is refuted:

- where a unit has at most one trial, by the binomial distribution, which is exact;
- otherwise by betting (Waudby-Smith and Ramdas, J. R. Stat. Soc. B 86, 2024, section 4): the capital of a gambler who
  puts a part of it on each unit having gained, rate * trials - failures > 0. Where the rate is `rate` or more no bet is
  favourable, and the capital reaches 1 / alpha with a chance of at most alpha (Ville's inequality). The part is chosen
  from the units before (their aGRAPA, shrunk towards FIRST_BET), in an order that a fixed seed shuffles. It needs a
  bound on what one unit can lose, which images alone cannot give: Evidence.worst.
"""

import math
from dataclasses import dataclass

import numpy as np

FIRST_BET, LARGEST_BET = 0.9, 0.95  # parts of the capital that the worst unit takes
PRIOR_UNITS = 20  # how many units weigh as much as FIRST_BET
CONSTANT_BETS = np.linspace(0.02, LARGEST_BET, 40)
ORDER_SEED = 0


@dataclass(frozen=True)
class Evidence:
    """What units say about a rate, in G variants, such as score thresholds.

    Attributes:
        trials, failures: (U, G) of each unit.
        rate: what is to be refuted; above 0.
        worst: (G,) the most that failures - rate * trials may be in a unit of the population; above 0.
    """

    trials: np.ndarray
    failures: np.ndarray
    rate: float
    worst: np.ndarray

    @property
    def gains(self) -> np.ndarray:
        """(U, G) rate * trials - failures, as parts of the worst loss."""
        gains = self.rate * self.trials - self.failures
        return gains / np.maximum(self.worst, -gains.min(axis=0, initial=0.0))


def refuted(evidence: Evidence, alpha: float) -> np.ndarray:
    """(G,) bools: whether a rate of evidence.rate or more is refuted; a true one is with a chance of at most alpha."""
    single = _single(evidence)
    tried, lost = evidence.trials.sum(axis=0), evidence.failures.sum(axis=0)
    passed = _log_capital(evidence.gains).max(axis=0, initial=0.0) >= math.log(1 / alpha)
    for g in np.flatnonzero(single):
        passed[g] = binomial_tail(int(lost[g]), int(tried[g]), evidence.rate) <= alpha
    return passed


def units_needed(evidence: Evidence, alpha: float) -> float:
    """How many units like these would refute it, in the best variant; inf where their own rate is not below it.

    The logarithm of the capital of the best constant bet grows in proportion to the units.
    """
    gains = evidence.gains
    bets = np.append(CONSTANT_BETS, 1.0) if _single(evidence).all() else CONSTANT_BETS
    with np.errstate(divide="ignore"):  # all lost
        growth = max(float(np.log1p(bet * gains).mean(axis=0).max(initial=0.0)) for bet in bets)
    return math.log(1 / alpha) / growth if growth > 0 else math.inf


def binomial_tail(successes: int, count: int, chance: float) -> float:
    """P(X <= successes) of a binomial X with 0 < chance < 1; 1 for a count of 0."""
    if successes >= count:
        return 1.0
    k = np.arange(1, successes + 1)
    choices = np.concatenate([[0.0], np.cumsum(np.log((count + 1 - k) / k))])  # logarithms of binomial coefficients
    k = np.arange(successes + 1)
    return float(np.exp(choices + k * math.log(chance) + (count - k) * math.log1p(-chance)).sum())


def _single(evidence: Evidence) -> np.ndarray:
    """(G,) whether no unit has, or could have by its worst loss, more than one trial."""
    one = evidence.trials.max(axis=0, initial=0.0) <= 1
    return one & (evidence.worst <= 1 - evidence.rate + 1e-9) & (evidence.rate < 1)


def _log_capital(gains: np.ndarray) -> np.ndarray:
    """(U, G) logarithm of the capital after each unit, from gains (U, G) of at least -1."""
    gains = np.random.default_rng(ORDER_SEED).permutation(gains)
    before = np.arange(len(gains))[:, None]
    mean, square = (_before(values) / np.maximum(before, 1) for values in (gains, gains**2))
    best = np.divide(mean, square, out=np.zeros_like(mean), where=square > 0)
    weight = before / (before + PRIOR_UNITS)
    bet = np.clip(weight * best + (1 - weight) * FIRST_BET, 0, LARGEST_BET)
    return np.cumsum(np.log1p(bet * gains), axis=0)


def _before(values: np.ndarray) -> np.ndarray:
    """Sums of the rows before each row."""
    return np.cumsum(values, axis=0) - values
