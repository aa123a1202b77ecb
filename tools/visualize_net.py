"""Shows a network: a table of its layers with shapes, parameters and GFLOP, and a picture of its graph.

Usage: python tools/visualize_net.py --network mobilenet --data-shape 300 [--train] [--print-net]

The picture, OUTPUT-DIR/ssd_NETWORK_SHAPE.pdf, needs the program `dot` of Graphviz; without it there is the table alone.
"""

import importlib
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    importlib.import_module("as_module")

from common.errors import OptionError
from config.command_line import parse_options
from config.groups import InputOptions
from config.options import fields_of, joined_options, option, same_option
from machine.command import run_command
from symbol.registry import network_options_class

if TYPE_CHECKING:
    from tools.list_networks import Layer


EXAMPLE = "python tools/visualize_net.py --network mobilenet --data-shape 300 --output-dir output"
# What --help shows; --help-all has all.
FIRST = ("network", "num_classes", "data_shape", "train", "output_dir", "print_net")


@dataclass(frozen=True)
class VisualizeOptions:
    """The classic flags of tools.visualize_net; the options of the network join them."""

    network: str = same_option(InputOptions, "network", None)
    num_classes: int = option(20, "classes of objects", minimum=1, aliases=("num_class",))
    data_shape: tuple[int, ...] = same_option(InputOptions, "data_shape", None)
    train: bool = option(False, "show the training network, with its losses")
    output_dir: str = option(".", "folder of the picture")
    print_net: bool = option(False, "print the symbol as JSON instead of the table")


def main(argv: list[str]) -> int:
    """Prints the table or the JSON and draws the picture; returns the exit status."""
    options = parse_options(
        visualize_options_class(), argv, "Shows the layers of a network.", example=EXAMPLE, first=FIRST
    )
    symbol, inputs = build(options)
    if options.print_net:
        sys.stdout.write(f"{symbol.tojson()}\n")
    else:
        from tools.list_networks import summarise

        sys.stdout.writelines(f"{line}\n" for line in table(summarise(symbol, inputs)))
    sys.stderr.write(f"{draw(symbol, inputs, options)}\n")
    return 0


def visualize_options_class() -> type[VisualizeOptions]:
    """The command line of tools.visualize_net."""
    return joined_options("VisualizeOptions", VisualizeOptions, network_options_class())


def build(options: VisualizeOptions) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The symbol and the shapes of its inputs for one image."""
    from common.sizes import input_size
    from symbol.symbol_factory import get_assigner, get_symbol, get_symbol_train

    size, settings = (
        input_size(options.data_shape),
        {name: getattr(options, name) for name in fields_of(network_options_class())},
    )
    inputs: dict[str, tuple[int, ...]] = {"data": (1, 3, *size)}
    if not options.train:
        return get_symbol(options.network, size, options.num_classes, **settings), inputs
    assigner = get_assigner(options.network, size, options.num_classes, **settings)
    labels = {"label": (1, 6)} if assigner is None else assigner.shapes(size)
    inputs.update({name: (1, *shape) for name, shape in labels.items()})
    return get_symbol_train(options.network, size, options.num_classes, **settings), inputs


def table(layers: "list[Layer]") -> Iterator[str]:
    """Lines of text: a header, a line per layer, the sums."""
    from tools.list_networks import totals

    width = max(len(layer.name) for layer in layers)
    kind = max(len(layer.operator) for layer in layers)
    yield f"{'layer':{width}}  {'operator':{kind}}  {'output':22}  {'parameters':>10}  {'GFLOP':>7}"
    for layer in layers:
        shape, flops = " x ".join(map(str, layer.shape)), f"{layer.flops / 1e9:.3f}" if layer.flops else ""
        cells = f"{layer.name:{width}}  {layer.operator:{kind}}  {shape:22}  {layer.parameters or '':>10}  {flops:>7}"
        yield cells.rstrip()
    parameters, gigaflops = totals(layers)
    yield f"{len(layers)} layers, {parameters} parameters ({parameters / 1e6:.1f} M), {gigaflops:.1f} GFLOP an image"


def draw(symbol: Any, inputs: dict[str, tuple[int, ...]], options: VisualizeOptions) -> str:
    """Draws the graph; returns the sentence that says where it is, or why there is none."""
    if shutil.which("dot") is None:
        return "No picture of the graph: it needs the program `dot` (apt-get install graphviz)."
    from machine.runtime import mx

    folder = Path(options.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--output-dir {folder}: cannot be made ({error.strerror}); choose another") from error
    shape = "x".join(map(str, options.data_shape))
    name = re.sub(r"[^\w.-]", "_", f"ssd_{options.network}_{shape}")
    # plot_network does not find the shapes of operators with several outputs (box_nms): such a graph goes without.
    outputs = symbol.get_internals().list_outputs()
    shapes = None if any(re.search(r"_output\d$", output) for output in outputs) else inputs
    graph = mx.viz.plot_network(symbol, shape=shapes, node_attrs={"shape": "rect", "fixedsize": "false"})
    return f"Picture of the graph: {graph.render(str(folder / name), cleanup=True)}"


if __name__ == "__main__":
    run_command(main)
