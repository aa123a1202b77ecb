"""Simulated images, their objects and detections, already judged: what intervals and thresholds are tried on.

An image has a difficulty, from which the chances of its objects, the scores and the number of false detections follow:
so misses and false alarms come together, as in photographs that are dark or blurred.
"""

from dataclasses import dataclass

import numpy as np

from evaluate.detections import COCO
from evaluate.hits import ClassHits, Hits

COCO_LEVELS = 10  # IoU thresholds
DARKNESS = 8.0  # logits


@dataclass(frozen=True)
class Population:
    """What images are like; one entry of each tuple for a class.

    Attributes:
        objects: mean number of objects in an image.
        found: chance of an object to be detected, in logits, in an image of mean difficulty.
        separation: distance of the scores of right and wrong detections, in logits.
        false: mean number of false detections in an image.
        spread: standard deviation of an image's difficulty, in logits; 0 = objects are independent.
        crowding: variance of the number of objects around its mean's Poisson, by a gamma factor; 0 = Poisson.
        dark: share of images in which next to nothing is found.
        drift: how much the mix of classes leans to one side within a batch of images; 0 = not.
    """

    objects: tuple[float, ...]
    found: tuple[float, ...]
    separation: tuple[float, ...]
    false: tuple[float, ...]
    spread: float = 1.0
    crowding: float = 0.0
    dark: float = 0.0
    drift: float = 0.0

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each class."""
        return tuple(f"class{k}" for k in range(len(self.objects)))


POPULATIONS = {
    "cells": Population((1.0, 12.0, 1.0), (4.0, 2.5, 2.0), (5.0, 3.0, 3.0), (0.2, 4.0, 1.0), crowding=0.3),
    "one object, independent": Population((1.0,), (2.0,), (3.0,), (1.0,), spread=0.0),
    "clustered": Population((3.0,), (2.0,), (3.0,), (2.0,), spread=2.0, crowding=0.5),
    "dark images": Population((2.0,), (4.0,), (5.0,), (0.5,), dark=0.03),
    "drifting mix": Population((2.0, 2.0), (3.0, 1.5), (4.0, 3.0), (1.0, 1.0), drift=1.5),
    "rare and hard": Population((0.3, 1.0), (0.5, 1.0), (2.0, 2.0), (1.0, 2.0)),
}


def draw_hits(population: Population, images: int, rng: np.random.Generator, levels: int = 1) -> Hits:
    """The detections of `images` images; levels: IoU thresholds, 1 = VOC's rule, COCO_LEVELS = COCO's."""
    difficulty = rng.normal(0, population.spread, images) + DARKNESS * (rng.random(images) < population.dark)
    crowd = _gamma(rng, population.crowding, images)
    lean = rng.normal(0, population.drift, images)
    classes = []
    for k, mean in enumerate(population.objects):
        mix = np.exp(lean * (-1) ** k - population.drift**2 / 2)
        classes.append(_draw_class(population, k, mean * crowd * mix, difficulty, rng, levels))
    ious = tuple(np.linspace(0.5, 0.95, levels).tolist()) if levels > 1 else (0.5,)
    kind = COCO if levels > 1 else "voc"
    return Hits(kind, population.class_names, tuple(classes), ious, np.ones(images))


def _draw_class(
    population: Population, k: int, mean: np.ndarray, difficulty: np.ndarray, rng: np.random.Generator, levels: int
) -> ClassHits:
    """One class of images with these mean numbers of objects and difficulties (images,)."""
    objects = rng.poisson(mean)
    owner = np.repeat(np.arange(len(mean)), objects)
    owner = owner[rng.random(len(owner)) < _sigmoid(population.found[k] - difficulty[owner])]
    wrong = rng.poisson(population.false[k] * np.exp(np.minimum(difficulty, 2 * population.spread) / 2))
    unit = np.concatenate([owner, np.repeat(np.arange(len(mean)), wrong)])
    right = np.arange(len(unit)) < len(owner)
    half = population.separation[k] / 2
    score = _sigmoid(np.where(right, half, -half) + rng.normal(0, 1, len(unit)) - np.where(right, difficulty[unit], 0))
    passed = right * (1 + rng.binomial(levels - 1, 0.7, len(unit)))  # IoU thresholds
    order = np.argsort(-score, kind="stable")
    true = np.arange(levels)[:, None] < passed[order]
    return ClassHits(unit[order], score[order], true, ~true, objects)


def _gamma(rng: np.random.Generator, variance: float, count: int) -> np.ndarray:
    return rng.gamma(1 / variance, variance, count) if variance else np.ones(count)


def _sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value))
