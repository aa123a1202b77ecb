"""What a network consists of: its layers with output shapes, parameters and arithmetic."""

import json
import math
from dataclasses import dataclass

from symbol.layers import Symbol

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One operator: its first output's shape, trained values (shared ones at their first user) and operations."""

    name: str
    operator: str
    shape: Shape
    parameters: int
    flops: int


def summarise(symbol: Symbol, inputs: dict[str, Shape]) -> list[Layer]:
    """The operators of a symbol in the order of computation, for inputs (data and labels) of the given shapes.

    Arithmetic is that of convolutions and fully connected layers, a multiplication and an addition being two
    operations. A shape that cannot be inferred is ().
    """
    outputs, shapes = _shapes(symbol, inputs)
    layers, counted = [], set(inputs)
    nodes = json.loads(symbol.tojson())["nodes"]
    for node in nodes:
        if node["op"] != "null":
            variables = [nodes[entry[0]]["name"] for entry in node["inputs"] if nodes[entry[0]]["op"] == "null"]
            fresh = [name for name in variables if name not in counted and name in shapes]
            counted.update(fresh)
            shape = outputs.get(node["name"], ())
            flops = _flops(node, shape, [shapes[name] for name in variables if name in shapes and name not in inputs])
            layers.append(Layer(node["name"], node["op"], shape, sum(math.prod(shapes[n]) for n in fresh), flops))
    return layers


def totals(layers: list[Layer]) -> tuple[int, float]:
    """(trained values, GFLOP of a forward pass of the batch)."""
    return sum(layer.parameters for layer in layers), sum(layer.flops for layer in layers) / 1e9


def _shapes(symbol: Symbol, inputs: dict[str, Shape]) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Shapes of the operators' first outputs, and of the arguments."""
    internals = symbol.get_internals()
    arguments, outputs, _ = internals.infer_shape_partial(**inputs)
    first: dict[str, Shape] = {}
    for position, shape in enumerate(outputs):
        first.setdefault(internals[position].name, tuple(shape))
    return first, dict(zip(internals.list_arguments(), arguments, strict=True))


def _flops(node: dict, output: Shape, parameters: list[Shape]) -> int:
    """Operations of a layer whose first parameter is its weight (outputs, ...): two per weight and output position."""
    if node["op"] not in ("Convolution", "FullyConnected") or not parameters:
        return 0
    weight = parameters[0]
    return 2 * math.prod(output) * math.prod(weight[1:])
