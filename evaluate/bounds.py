"""Tests that a rate is kept in the population from which images were drawn, valid for any number of images.

A unit (an image, or a group of images) has trials and failures: objects and missed ones, detections and false ones, or
images and false detections. The rate is the ratio of their means. A unit's failures may depend on one another in any
way; units are drawn independently, and `most` bounds the failures of one. That the rate is at least q is refused:

- where a unit has at most one failure of its one trial, by the binomial distribution, which is exact;
- otherwise by betting (Waudby-Smith and Ramdas, J. R. Stat. Soc. B 86, 2024, section 4): the capital of a gambler who
  puts a part of it on each unit having q * trials - failures > 0. If the rate is q or more the capital is a
  supermartingale, and reaches 1 / alpha with a chance of at most alpha (Ville's inequality). The part is chosen from
  the units before (their aGRAPA, shrunk towards FIRST_BET), in an order that a fixed seed shuffles.
"""

import math

import numpy as np

FIRST_BET, LARGEST_BET = 0.9, 0.95  # parts of the bet that one worst unit would lose entirely
PRIOR_UNITS = 20  # how many units weigh as much as FIRST_BET
BETS = np.linspace(0.02, LARGEST_BET, 40)
ORDER_SEED = 0


def refuted(
    trials: np.ndarray, failures: np.ndarray, rate: float, most: np.ndarray, alpha: float, most_trials: float
) -> np.ndarray:
    """Whether a rate >= `rate` is refused at level alpha: (G,) bools.

    Args:
        trials: (U, G) of each unit, in G variants.
        failures: (U, G) of each unit.
        rate: above 0.
        most: (G,) the most failures that a unit of the population may have, at least 1.
        alpha: chance that a true one is refused.
        most_trials: the most trials that a unit of the population may have.
    """
    if most_trials <= 1 and rate < 1:
        pairs = zip(trials.sum(axis=0), failures.sum(axis=0), strict=True)
        return np.array([binomial_tail(int(lost), int(tried), rate) <= alpha for tried, lost in pairs])
    order = np.random.default_rng(ORDER_SEED).permutation(len(trials))
    gains = (rate * trials - failures)[order]
    return _log_capital(gains, _worst(trials, failures, rate, most)).max(axis=0, initial=0.0) >= math.log(1 / alpha)


def units_needed(
    trials: np.ndarray, failures: np.ndarray, rate: float, most: np.ndarray, alpha: float, most_trials: float
) -> float:
    """How many units like these would refuse it, in the best variant; inf where their own rate is not below `rate`.

    The logarithm of the capital grows in proportion to the units: by the best constant bet.
    """
    gains = rate * trials - failures
    worst = _worst(trials, failures, rate, most)
    part = BETS if most_trials > 1 else np.append(BETS, 1 - 1e-9)
    growth = max(float(np.log1p(bet * gains / worst).mean(axis=0).max()) for bet in part)
    return math.log(1 / alpha) / growth if growth > 0 else math.inf


def binomial_tail(successes: int, count: int, chance: float) -> float:
    """P(X <= successes) of a binomial X; 1 for a count of 0."""
    if successes >= count:
        return 1.0
    k = np.arange(successes + 1)
    steps = np.log(np.maximum(count - k[:-1], 1)) - np.log(k[1:])  # binomial coefficients, one from the other
    coefficient = np.concatenate([[0.0], np.cumsum(steps)])
    return float(np.exp(coefficient + k * math.log(chance) + (count - k) * math.log1p(-chance)).sum())


def _worst(trials: np.ndarray, failures: np.ndarray, rate: float, most: np.ndarray) -> np.ndarray:
    """(G,) the largest loss of a bet on one unit: all its trials fail, `most` of them."""
    return np.maximum(most - rate * np.minimum(most, trials.min(axis=0)), (failures - rate * trials).max(axis=0))


def _log_capital(gains: np.ndarray, worst: np.ndarray) -> np.ndarray:
    """(U, G) logarithm of the capital after each unit, from gains (U, G) of at least -worst (G,)."""
    gains = gains / worst
    before = np.arange(len(gains))[:, None]
    mean = _before(gains) / np.maximum(before, 1)
    square = _before(gains**2) / np.maximum(before, 1)
    best = np.divide(mean, square, out=np.zeros_like(mean), where=square > 0)
    weight = before / (before + PRIOR_UNITS)
    bet = np.clip(weight * best + (1 - weight) * FIRST_BET, 0, LARGEST_BET)
    return np.cumsum(np.log1p(bet * gains), axis=0)


def _before(values: np.ndarray) -> np.ndarray:
    """Sums of the rows before each row."""
    return np.cumsum(values, axis=0) - values
