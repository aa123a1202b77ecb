"""Converts weights of other projects to PREFIX-0000.params, for train.py --pretrained PREFIX --epoch 0.

python tools/convert_weights.py --from ssd.pytorch ssd300_mAP_77.43_v2.pth --network vgg16_ssd_voc --prefix model/ssd300
"""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    importlib.import_module("as_module")

import numpy as np

from common.errors import CheckpointError, OptionError
from common.files import MAX_PREFIX, check_name, check_prefix
from common.sizes import input_size
from config.augment_options import FORCE, LETTERBOX
from config.command_line import boolean_flags, parse_options
from config.groups import DataOptions, InputOptions, pixel_options
from config.options import from_mapping, option, same_option, to_mapping
from dataset.class_names import read_class_names
from dataset.pascal_voc import VOC_CLASSES
from detect.inputs import split_words
from machine.command import exit_on_sigterm, run_command
from symbol.network_options import WidthOption, YOLOOptions
from symbol.registry import family_of, network_options_class
from train.options import train_options

if TYPE_CHECKING:
    from model.weights.classic import Description
    from model.weights.fit import FitReport
    from symbol.darknet_cfg import CfgInput

Arrays = dict[str, np.ndarray]
DEFAULT_NETWORK = "vgg16_ssd_voc"


EXAMPLE = "python tools/convert_weights.py --from ssd.pytorch ssd300.pth --network vgg16_ssd_voc --prefix model/ssd300"


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert, for which network; a word that belongs to no flag is the file."""

    from_: str = option(
        "ssd.pytorch",
        "project that the weights come from: ssd.pytorch, torchvision, caffe, gluon, classic, darknet, "
        "yolov3-spp.pytorch or efficientdet.pytorch",
        "source",
    )
    file: str = option("", "file to convert; it may stand without the flag", "source")
    network: str = option(
        "",
        "network to make weights for, see docs/networks.md (default: what the file, or the symbol of --from classic, "
        f"says, else {DEFAULT_NETWORK})",
        "network",
    )
    data_shape: tuple[int, ...] | None = same_option(
        InputOptions, "data_shape", "the classic symbol's or the .cfg's, else 300, of YOLO 416, of EfficientDet its own"
    )
    width: float = same_option(WidthOption, "width", None)
    yolo_anchors: str = same_option(YOLOOptions, "yolo_anchors", None)
    resize_mode: str | None = same_option(InputOptions, "resize_mode", "as the project has it, or the .cfg says")
    num_class: int | None = same_option(DataOptions, "num_class", "those of the heads in the file, else 20")
    class_names: tuple[str, ...] = option(
        (),
        "names of the classes, a list or a file (default: VOC's if there are 20, else class0, class1, ...)",
        "network",
    )
    prefix: str = option("", "writes PREFIX-0000.params (default: the file without its suffix)", "output")
    overwrite: bool = option(False, "replace files of that prefix, never the file to convert", "output")


YOLO_BIAS = re.compile(r"pred_\d+_conv_bias")
YOLO_VALUES = 5  # of a box: x, y, w, h, objectness
CLS_BIAS, LOC_BIAS = "_cls_pred_conv_bias", "_loc_pred_conv_bias"
COORDINATES = 4
OUTPUTS = ("symbol.json", "0000.params", "0000.optim.params", "0000.json")  # after PREFIX-
EFFDET_BIAS = "cls_pred_pointwise_bias"


@dataclass(frozen=True)
class WeightsSource:
    """A project whose weights can be read.

    Attributes:
        module: in model/weights/: read(path) -> {name there: array}, and the function `renaming`: (arrays, network,
            options) -> (arg, aux) under our names; what it does not know keeps its name.
        options: of our network, which make it detect as the project does.
        pixels: options of train.py: how its images become inputs; others as train.py has them.
        side: of the input, unless given; 0: what the network was designed for.
        network: unless given.
        describing: function of the module: (arrays) -> SSDSettings, what a file says of itself; None for nothing.
    """

    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    pixels: Mapping[str, Any] = field(default_factory=dict)
    side: int = 300
    renaming: str = "rename"
    network: str = DEFAULT_NETWORK
    describing: str = ""

    def of_file(self, arrays: Arrays) -> tuple["WeightsSource", str]:
        """The source as this file makes it, and a note on that for the user, or ""."""
        found = getattr(importlib.import_module(f"model.weights.{self.module}"), self.describing)(arrays)
        if found is None:
            return self, ""
        options, pixels = {**self.options, **found.options}, {**self.pixels, **found.pixels}
        return replace(self, options=options, pixels=pixels, side=found.side, network=found.network), found.note

    @property
    def read(self) -> Callable[[str], Arrays]:
        """The reader of its files."""
        return importlib.import_module(f"model.weights.{self.module}").read

    @property
    def rename(self) -> Callable[[Arrays, str, Mapping[str, Any]], tuple[Arrays, Arrays]]:
        """The table from its names to ours."""
        return getattr(importlib.import_module(f"model.weights.{self.module}"), self.renaming)


# YOLOv3's inputs: RGB / 255 in their own proportions, with borders of a grey.
YOLO_PIXELS: dict[str, Any] = dict.fromkeys(("mean_r", "mean_g", "mean_b"), 0.0) | dict.fromkeys(
    ("std_r", "std_g", "std_b"), 255.0
)
YOLO_PIXELS |= {"resize_mode": LETTERBOX, "fill": 114}
# Darknet's, whose grey is 0.5: src/image.c, letterbox_image; no box is too small or too large (get_yolo_detections).
DARKNET_PIXELS = YOLO_PIXELS | {"fill": 127}
DARKNET_OPTIONS: dict[str, Any] = {"one_class": "product", "min_box": 0.0, "max_box": 1e6, "nms_topk": 1000}
DARKNET_OPTIONS |= {"score_threshold": 0.005, "nms": 0.45}  # src/detector.c, validate_detector_map
# OpenCV's dnn adds 1e-6 to variances, as pjreddie's Darknet to their roots; AlexeyAB's adds 1e-5 to variances.
DARKNET_OPTIONS |= {"batch_norm_eps": 1e-6}  # EPSILON of model/weights/darknet.py
# EfficientDet's: RGB by ImageNet's mean and standard deviation, letterboxed as the trainer of bubbliiiing does.
EFFDET_PIXELS: dict[str, Any] = {"mean_r": 123.675, "mean_g": 116.28, "mean_b": 103.53}
EFFDET_PIXELS |= {"std_r": 58.395, "std_g": 57.12, "std_b": 57.375, "resize_mode": "letterbox", "fill": 128}

# --from NAME; a new source is a module in model/weights/ and a row here.
SOURCES: dict[str, WeightsSource] = {
    "ssd.pytorch": WeightsSource(
        "pytorch",
        {"post_process": "per_class", "nms_topk": 200, "keep_topk": 200},
        renaming="rename_ssd",
        describing="describe_ssd",
    ),
    "torchvision": WeightsSource("pytorch", renaming="rename_ssd", describing="describe_ssd"),
    "caffe": WeightsSource(
        "caffe", {"post_process": "per_class", "nms_topk": 400, "keep_topk": 200}, describing="describe"
    ),
    "gluon": WeightsSource("gluon", describing="describe"),
    "classic": WeightsSource("classic"),
    "darknet": WeightsSource("darknet", DARKNET_OPTIONS, DARKNET_PIXELS, side=416),
    "yolov3-spp.pytorch": WeightsSource("pytorch", pixels=YOLO_PIXELS, side=416, renaming="rename_yolo"),
    "efficientdet.pytorch": WeightsSource("pytorch", pixels=EFFDET_PIXELS, side=0, renaming="rename_effdet"),
}


def main(argv: list[str]) -> None:
    """Reads a file, renames its arrays, writes those that fit and prints what was loaded, missing and unused."""
    words, flags = split_words(argv, boolean_flags(ConvertOptions))
    options = parse_options(
        ConvertOptions, flags, "Converts weights of another project: convert_weights.py FILE", example=EXAMPLE
    )
    exit_on_sigterm()
    source, path = _source(options), _file(words, options)
    prefix = options.prefix or str(path.with_suffix(""))
    _check_outputs(prefix, path, options.overwrite)
    arrays = source.read(str(path)) if source.describing else None
    source = source if arrays is None else _described(source, options, arrays)
    options, stated = _completed(options, source, path)
    options = replace(options, resize_mode=_resize_mode(options, source))
    network_options = to_mapping(from_mapping(network_options_class(), _network_values(options, source) | stated))
    arrays = source.read(str(path)) if arrays is None else arrays
    arg, aux = source.rename(arrays, options.network, network_options)
    names = _class_names(options, path, arg)
    report, complete = _write(prefix, options, source.pixels, network_options, names, arg, aux)
    print(report)
    print(f"{prefix}-0000.params written; train from it with --pretrained {prefix} --epoch 0")
    if complete:
        print(f"nothing is missing, it detects as it is: python demo.py --model {prefix} --epoch 0 --images IMAGE")


def _described(source: WeightsSource, options: ConvertOptions, arrays: Arrays) -> WeightsSource:
    """The source as the file makes it; prints what it assumes, or that the network given detects otherwise.

    Another network or side than the file's keeps anchors of its own: there may be other numbers of maps.
    """
    own, note = source.of_file(arrays)
    given = options.network or own.network, input_size(options.data_shape or (own.side,))
    if note and not options.network:
        print(f"note: {note}; --network says another one")
    if own is source or given == (own.network, (own.side, own.side)):
        return own
    if not note:
        print(f"note: the file detects as --network {own.network} --data-shape {own.side}, not as what is given")
    return replace(own, options={key: value for key, value in own.options.items() if not key.startswith("anchor_")})


def _completed(options: ConvertOptions, source: WeightsSource, path: Path) -> tuple[ConvertOptions, dict[str, Any]]:
    """The options with network and input side, and options of the network that a classic symbol states.

    Prints what the symbol leaves open, or asks for and this project does not have.
    """
    found = _classic_symbol(options, path)
    if found is None:
        network = options.network or source.network
        return replace(options, network=network, data_shape=options.data_shape or _shape(source, network)), {}
    network = options.network or found.network or ""
    if not network:
        raise OptionError(f"{path}: the symbol beside it is of no network that is known; give --network")
    notes = list(found.notes)
    if options.data_shape is None and found.data_shape is None:
        notes.append(f"it does not tell the input's side: {source.side} is taken, --data-shape says another one")
    print("\n".join(f"note: of the symbol beside it, {note}" for note in notes), end="\n" if notes else "")
    side = options.data_shape or (found.data_shape or source.side,)
    stated = {**found.options, **({"width": options.width} if options.width != 1 else {})}
    return replace(options, network=network, data_shape=side, width=stated.get("width", 1.0)), stated


def _classic_symbol(options: ConvertOptions, path: Path) -> "Description | None":
    """What the symbol of a classic checkpoint says; None for other sources, and with a line where it is not there."""
    if options.from_ != "classic":
        return None
    from model.weights import classic

    symbol = classic.symbol_path(path)
    if path.is_file() and not symbol.is_file():
        print(f"note: {symbol} is missing: network and settings are those of the flags and defaults")
    return classic.describe(path, options.network or None) if symbol.is_file() else None


def _network_values(options: ConvertOptions, source: WeightsSource) -> dict[str, Any]:
    """Options of the network that are given, and those that let a checkpoint do without the user's .cfg."""
    from symbol.symbol_factory import embedded_options

    values = {"width": options.width, "yolo_anchors": options.yolo_anchors, **source.options}
    return values | embedded_options(options.network, {})


def _source(options: ConvertOptions) -> WeightsSource:
    if options.from_ not in SOURCES:
        raise OptionError(f"--from {options.from_}: unknown (known: {', '.join(SOURCES)})")
    return SOURCES[options.from_]


def _shape(source: WeightsSource, network: str) -> tuple[int, ...]:
    """The input's, where none is given."""
    stated = _cfg_input(network)
    if stated and stated.size:
        return stated.size
    own = family_of(network).usual_sizes(network)
    return (own[0] if len(own) == 1 else source.side,)


def _cfg_input(network: str) -> "CfgInput | None":
    """What the .cfg of a network says of its input; None for a network without one."""
    from symbol.darknet_cfg import cfg_input
    from symbol.symbol_factory import embedded_options

    text = embedded_options(network, {}).get("darknet_cfg")
    return cfg_input(text, network) if text else None


def _resize_mode(options: ConvertOptions, source: WeightsSource) -> str:
    """How images fill the input: as given, as a .cfg of Darknet says, which is printed, or as the project has it."""
    usual = source.pixels.get("resize_mode", FORCE)
    stated = _cfg_input(options.network) if options.from_ == "darknet" else None
    if options.resize_mode or not stated:
        return options.resize_mode or usual
    mode = LETTERBOX if stated.letterbox else FORCE
    print(f"note: by its .cfg, images are taken as --resize-mode {mode} does; give another one if it was trained so")
    return mode


def _file(words: list[str], options: ConvertOptions) -> Path:
    """The one file that was named."""
    files = [*words, *filter(None, [options.file])]
    if len(files) != 1:
        raise OptionError(f"give one file to convert, not {len(files)}: convert_weights.py --from {options.from_} FILE")
    return Path(files[0])


def _check_outputs(prefix: str, path: Path, overwrite: bool) -> None:
    """OptionError where a file to be written is there already, unless it may be lost; the source never may."""
    check_prefix(prefix)
    check_name(prefix, "--prefix", MAX_PREFIX)
    for suffix in OUTPUTS:
        output = Path(f"{prefix}-{suffix}")
        if output.exists() and path.exists() and output.samefile(path):
            raise OptionError(f"--prefix {prefix}: {output} is the file to convert; choose another --prefix")
        if output.exists() and not overwrite:
            raise OptionError(f"{output} is there already; choose another --prefix, or add --overwrite to lose it")


def _class_names(options: ConvertOptions, path: Path, arg: Arrays) -> tuple[str, ...]:
    """The names given, VOC's, or class0, class1, ...; as many as the heads in the file have classes."""
    names = read_class_names(options.class_names) or ()
    in_file = _classes_of_heads(options, arg)
    count = options.num_class or in_file or len(names) or len(VOC_CLASSES)
    if names and len(names) != count:
        whose = f"{path} has {count}" if count == in_file else f"--num-class is {count}"
        raise OptionError(
            f"--class-names has {len(names)} names, but {whose}; give a name for each class, or --num-class "
            f"{len(names)} for other classes than the file's, whose heads are then left out"
        )
    if names:
        return names
    return VOC_CLASSES if count == len(VOC_CLASSES) else tuple(f"class{k}" for k in range(count))


def _classes_of_heads(options: ConvertOptions, arg: Arrays) -> int | None:
    """Classes without background by the sizes of a map's heads, or of YOLO's or EfficientDet's one; None without."""
    from boxes.effdet_assigner import PER_CELL
    from symbol.symbol_factory import feature_maps

    for name, bias in arg.items():
        if YOLO_BIAS.fullmatch(name):
            values = {"width": options.width, "yolo_anchors": options.yolo_anchors}
            maps = feature_maps(options.network, options.data_shape or (SOURCES[options.from_].side,), **values)
            return bias.size // maps[0].anchors - YOLO_VALUES
        if name == EFFDET_BIAS:
            return bias.size // PER_CELL
        loc = arg.get(name.removesuffix(CLS_BIAS) + LOC_BIAS)
        if name.endswith(CLS_BIAS) and loc is not None and loc.size >= COORDINATES:
            return bias.size // (loc.size // COORDINATES) - 1
    return None


def _write(
    prefix: str,
    options: ConvertOptions,
    pixels: Mapping[str, Any],
    network_options: dict[str, Any],
    names: tuple[str, ...],
    arg: Arrays,
    aux: Arrays,
) -> tuple["FitReport", bool]:
    """Writes what fits: a whole checkpoint of epoch 0 if nothing is missing, else the .params alone."""
    from machine.runtime import mx
    from model.checkpoint import meta_path
    from model.params_file import write_params
    from model.weights.fit import compare, expected_shapes

    assert options.data_shape  # main() has put the source's in
    wanted_arg, wanted_aux = expected_shapes(options.network, options.data_shape, len(names), **network_options)
    report = compare({**wanted_arg, **wanted_aux}, {**arg, **aux})
    if not report.loaded:
        raise CheckpointError(f"none of the {len(arg) + len(aux)} arrays of the file fits --network {options.network}")
    bad = next((name for name in report.loaded if not np.isfinite({**arg, **aux}[name]).all()), None)
    if bad is not None:
        raise CheckpointError(f"{bad:.80} of the file holds numbers that are not finite; convert another checkpoint")
    kept = [
        {name: mx.nd.array(array) for name, array in arrays.items() if name in report.loaded} for arrays in (arg, aux)
    ]
    if report.missing:
        meta_path(prefix, 0).parent.mkdir(parents=True, exist_ok=True)
        write_params(f"{prefix}-0000.params", *kept)
        meta_path(prefix, 0).unlink(missing_ok=True)  # of an earlier conversion
    else:
        _write_checkpoint(prefix, options, pixels, network_options, names, *kept)
    return report, not report.missing


def _write_checkpoint(
    prefix: str,
    options: ConvertOptions,
    pixels: Mapping[str, Any],
    network_options: dict[str, Any],
    names: tuple[str, ...],
    arg: dict[str, Any],
    aux: dict[str, Any],
) -> None:
    """A checkpoint of epoch 0, as training writes them, so that evaluate.py, deploy.py and demo.py run it."""
    from model.checkpoint import CheckpointMeta, save_checkpoint
    from symbol.symbol_factory import get_symbol_train
    from train.stages import symbol_digest

    assert options.data_shape  # main() has put the source's in
    symbol = get_symbol_train(options.network, options.data_shape, len(names), **network_options)
    defaults = train_options(**{**pixels, "resize_mode": options.resize_mode})
    meta = CheckpointMeta(
        epoch=0,
        num_update=0,
        learning_rate=0.0,
        scores={},
        seed=defaults.data.seed,
        class_names=names,
        **pixel_options(defaults.input),
        data_shape=input_size(options.data_shape),
        network=options.network,
        options=network_options,
        batch_size=defaults.data.batch_size,
        symbol_sha256=symbol_digest(symbol),
    )
    save_checkpoint(prefix, symbol.tojson(), arg, aux, {}, meta)


if __name__ == "__main__":
    run_command(main)
