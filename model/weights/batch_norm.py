"""Batch normalisation between projects: what another epsilon and a fixed gamma mean for the arrays.

Between read and rename, a moving variance stands with its source's epsilon added (what the source divides by); rename
subtracts the epsilon of the network that will use it, so that both compute the same numbers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from symbol.symbol_factory import get_symbol

VARIANCE = "_moving_var"
ANY_SIDE = 512  # no parameter name and no epsilon depends on the input size


def subtract_epsilon(aux: Mapping[str, np.ndarray], network: str, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """aux with each moving variance less the epsilon that `network` adds to it."""
    if not any(name.endswith(VARIANCE) for name in aux):
        return dict(aux)
    epsilons = _epsilons(network, options)
    return {name: array - epsilons[name] if name in epsilons else array for name, array in aux.items()}


def _epsilons(network: str, options: Mapping[str, Any]) -> dict[str, np.float32]:
    """{NAME_moving_var: epsilon} of a network."""
    symbol = get_symbol(network, ANY_SIDE, 1, **{key: options[key] for key in ("width",) if key in options})
    attributes = symbol.attr_dict()
    names = [name for name in symbol.list_auxiliary_states() if name.endswith(VARIANCE)]
    return {name: np.float32(attributes[name.removesuffix(VARIANCE)]["eps"]) for name in names}
