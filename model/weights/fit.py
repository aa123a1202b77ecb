"""How foreign weights fit a network of this project: what it has, what the file fills, and whose epsilon is added.

Between read and rename, a moving variance stands with its source's epsilon added (what the source divides by); rename
subtracts the epsilon of the network that will use it, so that both compute the same numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.sizes import DataShape, input_size
from symbol.symbol_factory import get_symbol

Shapes = dict[str, tuple[int, ...]]
VARIANCE = "_moving_var"
ANY_SIDE = 512  # no parameter name and no epsilon depends on the input size


@dataclass(frozen=True)
class FitReport:
    """Names of parameters in the network's order.

    Attributes:
        loaded: of the network, and in the file with the same shape.
        missing: of the network, but not in the file or of another shape there; to be initialised.
        unused: in the file, but not of the network.
        misfits: of `missing`, those that the file has in another shape: {name: (shape there, shape wanted)}.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    misfits: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __str__(self) -> str:
        """Three lines: a count and the names, unless all are loaded; a misfit with both shapes."""
        missing = [self._with_shapes(name) for name in self.missing]
        loaded = self.loaded if missing else ["all of the network"]
        lines = (("loaded", loaded), ("missing", missing), ("unused", self.unused))
        return "\n".join(
            f"{title} ({len(getattr(self, title))}): {', '.join(names) or 'none'}" for title, names in lines
        )

    def _with_shapes(self, name: str) -> str:
        if name not in self.misfits:
            return name
        found, wanted = self.misfits[name]
        return f"{name} (shape {found} in the file, {wanted} in the network)"


def expected_shapes(network: str, data_shape: DataShape, num_classes: int, **options: Any) -> tuple[Shapes, Shapes]:
    """({parameter: shape}, {auxiliary state: shape}) of a network.

    Taken from the detection symbol, which has all parameters and no label: MultiBoxTarget cannot do without its shape.
    """
    symbol = get_symbol(network, data_shape, num_classes, **options)
    arg_shapes, _, aux_shapes = symbol.infer_shape(data=(1, 3, *input_size(data_shape)))
    arg = dict(zip(symbol.list_arguments(), arg_shapes, strict=True))
    del arg["data"]
    return arg, dict(zip(symbol.list_auxiliary_states(), aux_shapes, strict=True))


def compare(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, np.ndarray]) -> FitReport:
    """The report of arrays against the parameters that a network has."""
    loaded = tuple(name for name, shape in wanted.items() if name in found and found[name].shape == shape)
    missing = tuple(name for name in wanted if name not in set(loaded))
    return FitReport(
        loaded=loaded,
        missing=missing,
        unused=tuple(name for name in found if name not in wanted),
        misfits={name: (found[name].shape, wanted[name]) for name in missing if name in found},
    )


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
