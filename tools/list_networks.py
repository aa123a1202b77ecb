"""Prints the tables of networks: feature maps, anchors, parameters and GFLOP at their usual input sizes; taps; weights.

Usage: python -m tools.list_networks [--write]
"""

import importlib
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

if not __package__:
    importlib.import_module("as_module")

from config.command_line import parse_options
from config.options import option
from machine.command import run_command
from symbol.layers import Symbol

Shape = tuple[int, ...]
NUM_CLASSES = 20
EXAMPLES = ("gluoncv:resnet50_v1b", "gluoncv:mobilenetv2_1.0")  # of the many that gluoncv has
PAGE = Path(__file__).parent.parent / "docs" / "networks.md"
BEGIN, END = "<!-- begin: python -m tools.list_networks --write -->\n", "<!-- end -->\n"


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


@dataclass(frozen=True)
class ListOptions:
    """The command line of tools.list_networks."""

    write: bool = option(False, "put the tables into docs/networks.md instead of printing it")


class NetworkFigures(NamedTuple):
    """A network at one square input size with NUM_CLASSES classes."""

    taps: tuple[str, ...]
    maps: tuple[int, ...]  # heights
    anchors: int
    parameters: int
    gigaflops: float


def main(argv: list[str]) -> int:
    """Prints Markdown, a row per network and input size and one for its taps, or writes it into the page."""
    options = parse_options(
        ListOptions,
        argv,
        "Lists the networks with their anchors and parameters.",
        example="python tools/list_networks.py",
    )
    if options.write:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table()), encoding="utf-8")
    else:
        sys.stdout.write(table())
    return 0


def table() -> str:
    """Three tables in Markdown, sizes, taps and weights to start from, without anything around them."""
    from symbol.registry import list_networks

    found = {
        network: {size: describe(network, size) for size in sizes_of(network)}
        for network in (*list_networks(), *EXAMPLES)
    }
    lines = [
        "| network | input | feature maps | anchors | parameters | GFLOP |",
        "|---|---|---|---|---|---|",
    ]
    for network, by_size in found.items():
        for size, d in by_size.items():
            cells = (network, size, _listed(d.maps), d.anchors, f"{d.parameters / 1e6:.1f} M", f"{d.gigaflops:.1f}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| network | taps: the layers of the body that heads read |", "|---|---|"]
    for network, by_size in found.items():
        same = len({d.taps for d in by_size.values()}) == 1
        taps = {network if same else f"{network}, {size}": d.taps for size, d in by_size.items()}
        lines += [f"| {name} | {_listed(values)} |" for name, values in taps.items()]
    return "\n".join([*lines, "", *weights_table()]) + "\n"


def weights_table() -> list[str]:
    """Lines of the table of networks whose bodies have weights of an ImageNet classifier."""
    from model.weights.imagenet import SAME_AS_TORCHVISION, file_source, imagenet_source
    from symbol.registry import list_networks

    lines = ["| network | `--pretrained imagenet` | `--pretrained FILE.pth` |", "|---|---|---|"]
    for network in dict.fromkeys((*list_networks(), *SAME_AS_TORCHVISION)):
        sources = imagenet_source(network), file_source(network)
        if any(sources):
            lines.append(f"| {network} | {' | '.join(source or '-' for source in sources)} |")
    return lines


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def sizes_of(network: str) -> tuple[int, ...]:
    """The usual square inputs of a network."""
    from symbol.registry import family_of

    return family_of(network).usual_sizes(network)


def with_table(page: str, text: str) -> str:
    """The page with `text` between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{text}{END}{after}"


def describe(network: str, size: int) -> NetworkFigures:
    """What the table says about a network at a square input."""
    from symbol.symbol_factory import feature_maps, get_symbol, tap_names

    maps = feature_maps(network, size)
    layers = summarise(get_symbol(network, size, NUM_CLASSES), {"data": (1, 3, size, size)})
    return NetworkFigures(
        tap_names(network, size),
        tuple(m.height for m in maps),
        sum(m.height * m.width * m.anchors for m in maps),
        *totals(layers),
    )


if __name__ == "__main__":
    run_command(main)
