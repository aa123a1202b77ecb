"""Writes a YOLOv3 checkpoint as Darknet's files: OUTPUT.weights, OUTPUT.cfg and OUTPUT.names.

python -m tools.write_darknet --prefix output/cells --epoch best --output export/cells
"""

import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    importlib.import_module("as_module")

from common.errors import CheckpointError, DataError, OptionError
from common.files import check_prefix, write_all
from config.augment_options import FORCE, LETTERBOX
from config.command_line import parse_options
from config.model_groups import CheckpointOptions
from config.options import from_mapping, option
from dataset.darknet_data import names_content
from machine.command import run_command
from symbol.network_options import YOLOOptions

if TYPE_CHECKING:
    from model.checkpoint import CheckpointMeta
    from symbol.darknet_sections import Sections

logger = logging.getLogger(__name__)
SUFFIXES = ("weights", "cfg", "names")


@dataclass(frozen=True)
class WriteOptions(CheckpointOptions):
    """Which checkpoint to write, and where to."""

    output: str = option("", "path of the files without their suffixes (default: the prefix)")
    overwrite: bool = option(False, "replace files of that name, never the .cfg of which the network was made")


def main(argv: list[str]) -> None:
    """Writes the three files."""
    options = parse_options(
        WriteOptions,
        argv,
        "Writes a YOLOv3 checkpoint as Darknet's .weights, .cfg and .names.",
        example="python tools/write_darknet.py --prefix output/cells --epoch best --output export/cells",
    )
    from model.checkpoint import load_checkpoint
    from model.weights import darknet
    from model.weights.darknet import for_epsilon, rescaled_for_unit_pixels, with_sure_class
    from symbol.darknet_cfg import format_cfg

    checkpoint = load_checkpoint(options.prefix, options.epoch)
    meta = checkpoint.meta
    weights, cfg, names = _outputs(options, meta.network)
    sections = _sections(options.prefix, meta)
    parameters = {**checkpoint.arg_params, **checkpoint.aux_params}
    arrays = {name: array.asnumpy() for name, array in parameters.items()}
    arrays = for_epsilon(arrays, meta.options.get("batch_norm_eps", YOLOOptions.batch_norm_eps))
    darknet.check(options.prefix, sections, arrays)
    if len(meta.class_names) == 1 and meta.options.get("one_class", YOLOOptions.one_class) == "objectness":
        arrays = with_sure_class(sections, arrays)
    arrays, border_error = rescaled_for_unit_pixels(options.prefix, arrays, sections, meta.mean_pixels, meta.std)
    height, width = meta.data_shape
    contents = {
        weights: darknet.weights_content(weights, sections, arrays, meta.num_update * meta.batch_size),
        cfg: format_cfg(sections, (height, width), meta.resize_mode == LETTERBOX).encode("utf-8"),
        names: names_content(names, meta.class_names),
    }
    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
        write_all(contents)
    except OSError as error:
        raise DataError(
            f"{error.filename or weights}: cannot be written ({error.strerror}); free space or change --output"
        ) from error
    print(f"{weights}, .cfg and .names written")
    for line in _differences(options.prefix, meta, border_error):
        logger.warning(line)


def _outputs(options: WriteOptions, network: str) -> list[Path]:
    """The three files; OptionError where one is there already, unless it may be lost; the network's .cfg never may."""
    from symbol.detector.yolo import PREFIX

    output = options.output or options.prefix
    check_prefix(output, "--output")
    own = Path(network.removeprefix(PREFIX)) if network.startswith(PREFIX) else None
    paths = [Path(f"{output}.{suffix}") for suffix in SUFFIXES]
    for path in paths:
        if own and own.exists() and path.exists() and path.samefile(own):
            raise OptionError(f"--output {output}: the network was made of {path}; choose another --output")
        if path.exists() and not options.overwrite:
            raise OptionError(f"{path} is there already; choose another --output, or add --overwrite to lose it")
    return paths


def _sections(prefix: str, meta: "CheckpointMeta") -> "Sections":
    """Those of a checkpoint's network, with its width, anchors and classes; CheckpointError for no YOLOv3."""
    from symbol.darknet_sections import with_classes
    from symbol.detector.yolo import YOLOv3, customise, find_row
    from symbol.registry import family_of, network_options_class
    from symbol.symbol_factory import rebuilding_options

    if not isinstance(family_of(meta.network), YOLOv3):
        raise CheckpointError(f"{prefix}: its network is {meta.network}; Darknet's files are for YOLOv3")
    own = rebuilding_options(meta.network, meta.options, prefix)
    network = from_mapping(network_options_class(), own, prefix)
    return with_classes(customise(find_row(meta.network, network.darknet_cfg), network), len(meta.class_names))


def _differences(prefix: str, meta: "CheckpointMeta", border_error: float) -> list[str]:
    """A sentence for each way in which Darknet's input differs from that of the training.

    border_error: of the first convolution's outputs at the border (rescaled_for_unit_pixels).
    """
    found = []
    if border_error:
        found.append(
            f"{prefix} was trained with means {_numbers(meta.mean_pixels)}, and Darknet has none: they are folded "
            "into the first convolution, exactly but for the border of the input, where its outputs are off by up to "
            f"{border_error:.2g} standard deviations; train with --mean-r 0 --mean-g 0 --mean-b 0 to avoid it"
        )
    if meta.resize_mode == FORCE:
        found.append(
            f"{prefix} was trained on images stretched to the input (--resize-mode {FORCE}), as AlexeyAB's Darknet "
            "does and the .cfg says; pjreddie's letterboxes them, which costs accuracy unless images have the input's "
            "proportions: for it, train with --resize-mode letterbox"
        )
    return found


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    run_command(main)
