"""Assigners for the tests of the iterator; workers import this module, so it keeps clear of mxnet."""

import sys
from dataclasses import dataclass

import numpy as np

from boxes.assigners import AssignerError

IGNORED = -7.0


@dataclass(frozen=True)
class ToyAssigner:
    """Counts objects; says whether its process knows mxnet, and can take long or fail."""

    fail: bool = False
    most: int = 100

    def __call__(self, objects, size):
        if self.fail:
            raise KeyError("a bug in the assigner")
        if len(objects) > self.most:
            raise AssignerError(f"{len(objects)} objects are too many")
        return {
            "ids": np.resize(objects[:, 0] if len(objects) else -1, (4, 2)).astype(np.float32),
            "knows_mxnet": np.array([any(name.split(".")[0] == "mxnet" for name in sys.modules)], np.float32),
            "normaliser": np.array([len(objects)], np.float32),
        }

    def shapes(self, size):
        return {"ids": (4, 2), "knows_mxnet": (1,), "normaliser": (1,)}

    def ignored(self, size):
        return {
            "ids": np.full((4, 2), IGNORED, np.float32),
            "knows_mxnet": np.zeros(1, np.float32),
            "normaliser": np.zeros(1, np.float32),
        }


@dataclass(frozen=True)
class ColumnAssigner:
    """An array as large as the input, and normalisers of two columns: objects and images."""

    def __call__(self, objects, size):
        return {"cells": np.full(size[0] * size[1], len(objects), np.float32), "normaliser": _columns(len(objects), 1)}

    def shapes(self, size):
        return {"cells": (size[0] * size[1],), "normaliser": (2,)}

    def ignored(self, size):
        return {"cells": np.full(size[0] * size[1], IGNORED, np.float32), "normaliser": _columns(0, 0)}


def _columns(*values):
    return np.array(values, np.float32)
