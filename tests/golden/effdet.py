"""The networks of the PyTorch EfficientDet trainers as ours: weights made by formula under our names."""

import re
from functools import cache

import numpy as np

from model.weights.pytorch import effdet_name
from symbol.detector.efficientdet import ROWS as EFFDET_NETWORKS
from tests.golden.loader import Case, cases, formula_parameters

ALONE = re.compile(r"^bifpn_\w+\.")  # a cell of a BiFPN alone


def stored_parameters(case: Case) -> dict[str, np.ndarray]:
    """The state_dict of a case's network, under its names there."""
    args = case.args
    return _of_file(args["params_file"], tuple(args["params_path"]), args["gain"])


@cache
def _of_file(file: str, path: tuple[str, ...], gain: float) -> dict[str, np.ndarray]:
    found = (
        c
        for c in cases("formula_params")
        if (c.file, tuple(c.keys["params"])) == (file, path) and c.args["gain"] == gain
    )
    return dict(formula_parameters(next(found)))


def parameters(case: Case) -> dict[str, np.ndarray]:
    """All parameters and states of a case's network under our names; the cell of a BiFPN alone is number 0."""
    stored = {ALONE.sub("bifpn.0.", name): array for name, array in stored_parameters(case).items()}
    named = {effdet_name(name): array for name, array in stored.items()}
    assert len(named) == len(stored)
    assert not named.keys() & stored.keys()
    return named


def network_of(case: Case) -> str:
    """Our name of the network with the case's compound coefficient."""
    name = f"efficientdet_d{case.args['phi']}"
    assert name in EFFDET_NETWORKS
    return name
