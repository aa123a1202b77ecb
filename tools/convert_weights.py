"""Converts weights of other projects to PREFIX-0000.params, for train.py --pretrained PREFIX --epoch 0.

python tools/convert_weights.py --from ssd.pytorch ssd300_mAP_77.43_v2.pth --network vgg16_ssd_voc --prefix model/ssd300
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    importlib.import_module("as_module")

import numpy as np

from config.convert_options import ConvertOptions
from config.errors import CheckpointError, OptionError, run_command
from config.network_options import NetworkOptions
from config.options import from_mapping, parse_options, to_mapping
from config.run import TrainOptions
from dataset.pascal_voc import VOC_CLASSES
from detect.inputs import split_words

if TYPE_CHECKING:
    from train.weights.report import Report

Arrays = dict[str, np.ndarray]
CLS_BIAS, LOC_BIAS = "_cls_pred_conv_bias", "_loc_pred_conv_bias"
COORDINATES = 4


@dataclass(frozen=True)
class Source:
    """A project whose weights can be read.

    Attributes:
        module: in train/weights/: read(path) -> {name there: array}, rename(arrays, network, options) -> (arg, aux)
            under our names; what it does not know keeps its name.
        options: of our network, which make it detect as the project does.
    """

    module: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def read(self) -> Callable[[str], Arrays]:
        """The reader of its files."""
        return importlib.import_module(f"train.weights.{self.module}").read

    @property
    def rename(self) -> Callable[[Arrays, str, Mapping[str, Any]], tuple[Arrays, Arrays]]:
        """The table from its names to ours."""
        return importlib.import_module(f"train.weights.{self.module}").rename


# --from NAME; a new source is a module in train/weights/ and a row here.
SOURCES: dict[str, Source] = {
    "ssd.pytorch": Source("pytorch", {"post_process": "per_class", "nms_topk": 200, "keep_topk": 200}),
    "torchvision": Source("pytorch"),
}


def main(argv: list[str]) -> None:
    """Reads a file, renames its arrays, writes those that fit and prints what was loaded, missing and unused."""
    words, flags = split_words(argv)
    options = parse_options(ConvertOptions, flags, "Convert weights of another project; the file is a word by itself.")
    source, path = _source(options), _file(words, options)
    prefix = options.prefix or str(path.with_suffix(""))
    network_options = to_mapping(from_mapping(NetworkOptions, dict(source.options)))
    arg, aux = source.rename(source.read(str(path)), options.network, network_options)
    names = _class_names(options, arg)
    report, complete = _write(prefix, options, network_options, names, arg, aux)
    print(report)
    print(f"{prefix}-0000.params written; train from it with --pretrained {prefix} --epoch 0")
    if complete:
        print(f"nothing is missing, it detects as it is: python demo.py --model {prefix} --epoch 0 --images IMAGE")


def _source(options: ConvertOptions) -> Source:
    if options.from_ not in SOURCES:
        raise OptionError(f"--from {options.from_}: unknown (known: {', '.join(SOURCES)})")
    return SOURCES[options.from_]


def _file(words: list[str], options: ConvertOptions) -> Path:
    """The one file that was named."""
    files = [*words, *filter(None, [options.file])]
    if len(files) != 1:
        raise OptionError(f"give one file to convert, not {len(files)}: convert_weights.py --from {options.from_} FILE")
    return Path(files[0])


def _class_names(options: ConvertOptions, arg: Arrays) -> tuple[str, ...]:
    """The names given, VOC's, or class0, class1, ...; as many as the heads in the file have classes."""
    count = options.num_class or len(options.class_names) or _classes_of_heads(arg) or len(VOC_CLASSES)
    if options.class_names and len(options.class_names) != count:
        raise OptionError(f"--class-names has {len(options.class_names)} names, but there are {count} classes")
    if options.class_names:
        return options.class_names
    return VOC_CLASSES if count == len(VOC_CLASSES) else tuple(f"class{k}" for k in range(count))


def _classes_of_heads(arg: Arrays) -> int | None:
    """Classes without background by the sizes of a map's two heads; None without heads."""
    for name, bias in arg.items():
        loc = arg.get(name.removesuffix(CLS_BIAS) + LOC_BIAS)
        if name.endswith(CLS_BIAS) and loc is not None and loc.size >= COORDINATES:
            return bias.size // (loc.size // COORDINATES) - 1
    return None


def _write(
    prefix: str,
    options: ConvertOptions,
    network_options: dict[str, Any],
    names: tuple[str, ...],
    arg: Arrays,
    aux: Arrays,
) -> tuple["Report", bool]:
    """Writes what fits: a whole checkpoint of epoch 0 if nothing is missing, else the .params alone."""
    from config.runtime import mx
    from train.params_file import write_params
    from train.weights.report import compare, expected_shapes

    wanted_arg, wanted_aux = expected_shapes(options.network, options.data_shape, len(names), **network_options)
    report = compare({**wanted_arg, **wanted_aux}, {**arg, **aux})
    if not report.loaded:
        raise CheckpointError(f"none of the {len(arg) + len(aux)} arrays of the file fits --network {options.network}")
    kept = [
        {name: mx.nd.array(array) for name, array in arrays.items() if name in report.loaded} for arrays in (arg, aux)
    ]
    if report.missing:
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        write_params(f"{prefix}-0000.params", *kept)
    else:
        _write_checkpoint(prefix, options, network_options, names, *kept)
    return report, not report.missing


def _write_checkpoint(
    prefix: str,
    options: ConvertOptions,
    network_options: dict[str, Any],
    names: tuple[str, ...],
    arg: dict[str, Any],
    aux: dict[str, Any],
) -> None:
    """A checkpoint of epoch 0, as training writes them, so that evaluate.py, deploy.py and demo.py run it."""
    from symbol.symbol_factory import get_symbol_train, input_size
    from train.checkpoint import save_checkpoint
    from train.train_net import symbol_digest

    symbol = get_symbol_train(options.network, options.data_shape, len(names), **network_options)
    defaults = TrainOptions()
    meta = {
        "num_update": 0,
        "learning_rate": 0.0,
        "scores": {},
        "seed": defaults.seed,
        "class_names": list(names),
        "mean_pixels": [defaults.mean_r, defaults.mean_g, defaults.mean_b],
        "data_shape": list(input_size(options.data_shape)),
        "network": options.network,
        "options": network_options,
        "batch_size": defaults.batch_size,
        "symbol_sha256": symbol_digest(symbol),
    }
    save_checkpoint(prefix, 0, symbol.tojson(), arg, aux, {}, meta)


if __name__ == "__main__":
    run_command(main)
