"""Prints the table of networks: feature maps, anchors and parameters at their usual input sizes."""

import importlib

if not __package__:
    importlib.import_module("as_module")

import math

from config.errors import run_command
from config.options import parse_options
from config.run import EmptyOptions

NUM_CLASSES = 20
SIZES = (300, 512)


def main(argv: list[str]) -> int:
    """Prints Markdown, a row per network and input size."""
    parse_options(EmptyOptions, argv, "List the networks with their anchors and parameters.")
    from symbol.symbol_factory import list_networks

    print("| network | input | feature maps | anchors | parameters |\n|---|---|---|---|---|")
    for network in list_networks():
        for size in SIZES:
            maps, anchors, parameters = describe(network, size)
            print(f"| {network} | {size} | {maps} | {anchors} | {parameters / 1e6:.1f} M |")
    return 0


def describe(network: str, size: int) -> tuple[str, int, int]:
    """(heights of the feature maps, number of anchors, number of trained values) for a square input and 20 classes."""
    from symbol.symbol_factory import get_assigner, get_symbol

    assigner = get_assigner(network, size, NUM_CLASSES, targets="paper")
    assert assigner is not None  # targets=paper always has one
    symbol = get_symbol(network, size, NUM_CLASSES)
    shapes = dict(zip(symbol.list_arguments(), symbol.infer_shape(data=(1, 3, size, size))[0], strict=True))
    parameters = sum(math.prod(shape) for name, shape in shapes.items() if name != "data")
    maps = ", ".join(str(height) for height, _ in assigner.feature_shapes[(size, size)])
    return maps, assigner.shapes((size, size))["cls_target"][0], parameters


if __name__ == "__main__":
    run_command(main)
