"""Writes what benchmarks.inference measures of one network: the same weights in the files of every library.

python -m benchmarks.inference_files NETWORK FOLDER IMAGES, as benchmarks.inference calls it: IMAGES is a folder of
JPEGs, all of which int8 is calibrated with.

- float32/, bfloat16/, int8/: model folders of deploy.py, each with model.onnx, int8/ with model-int8.onnx, too
- onnxruntime-int8.onnx: onnxruntime.quantization, static QDQ, one scale for each channel of weights
- openvino-int8.xml: nncf's post-training quantization
- torch-symbol.json, torch-params.npz: the network without post-processing, batch norms not folded

In all three the convolutions and what lies between them are int8, the rest, decoding and suppression, is float32. The
ranges are those of the extreme values ("naive", MinMax); nncf's are its own default.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.inference_engines import (
    BFLOAT16,
    FLOAT32,
    INT8,
    OPENVINO_INT8,
    ORT_INT8,
    TORCH_PARAMS,
    TORCH_SYMBOL,
)
from benchmarks.inference_models import NETWORKS, make_model, raw_outputs, read_inputs
from deploy.onnx_export.export import to_onnx
from deploy.onnx_files import int8_onnx
from deploy.precision import calibrate
from engines.mxnet_engine import fused_model
from machine.runtime import mx
from model.folder import Model, inference_model, write_model_folder
from model.manifest import NAIVE, ONNX, ONNX_INT8, Calibration

MODEL_IMAGES = 4  # whose statistics the weights are made for
# Those of ONNX Runtime's int8 operators that networks have; SSD's L2 normalisation stays float32.
ORT_QUANTISED = ("Add", "Concat", "Conv", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Relu", "Resize", "Sigmoid")


def main(argv: Sequence[str]) -> None:
    """Writes the files of one network."""
    network, folder = NETWORKS[argv[0]], Path(argv[1])
    images = [path.read_bytes() for path in sorted(Path(argv[2]).iterdir())]
    trained = make_model(network, images[:MODEL_IMAGES])
    model = inference_model(trained)
    inputs = read_inputs(images, model.manifest)
    more = {ONNX: _onnx(model)}
    write_model_folder(folder / FLOAT32, model, more)
    write_model_folder(folder / BFLOAT16, _changed(model, dtype=BFLOAT16), more)
    int8 = _int8(model, inputs)
    write_model_folder(folder / INT8, int8, {**more, ONNX_INT8: int8_onnx(int8, fused_model(int8), more[ONNX])})
    raw = raw_outputs(network, trained.symbol)
    params = {name: array.asnumpy() for name, array in (trained.arg_params | trained.aux_params).items()}
    (folder / TORCH_SYMBOL).write_text(raw.tojson(), "utf-8")
    np.savez(folder / TORCH_PARAMS, **params)
    write_onnxruntime_int8(folder / FLOAT32 / ONNX, folder / ORT_INT8, inputs)
    write_openvino_int8(folder / FLOAT32 / ONNX, folder / OPENVINO_INT8, inputs)


def _onnx(model: Model) -> bytes:
    """As deploy.py --onnx writes it, but not tried on squares of colours: random weights have too many equal scores."""
    params = model.arg_params | model.aux_params
    classes = len(model.manifest.class_names)
    return to_onnx(model.symbol, params, model.manifest.image_shape, classes).SerializeToString()


def _int8(model: Model, inputs: np.ndarray) -> Model:
    """All layers int8; unlike deploy.py it measures no accuracy, which random weights do not have."""
    fused = fused_model(model)
    thresholds = calibrate(fused, [mx.nd.array(data[None]) for data in inputs], NAIVE)
    return _changed(model, dtype=INT8, calibration=Calibration("images", NAIVE, len(inputs), thresholds))


def _changed(model: Model, **changes: object) -> Model:
    return dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, **changes))  # type: ignore[arg-type]


class _Reader:
    """The calibration images as onnxruntime asks for them."""

    def __init__(self, inputs: np.ndarray) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        data = next(self._inputs, None)
        return None if data is None else {"data": data[None]}


def write_onnxruntime_int8(source: Path, target: Path, inputs: np.ndarray) -> None:
    """QDQ: activations without a sign, weights with one, as its documentation advises for CPUs with VNNI."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = onnx.load(source)
    nodes = [(node.name, node.op_type, node.input, node.output) for node in model.graph.node]
    quantize_static(
        model,
        target,
        _Reader(inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=list(ORT_QUANTISED),
        nodes_to_exclude=_after_convolutions(nodes),
    )


def write_openvino_int8(source: Path, target: Path, inputs: np.ndarray) -> None:
    """nncf's default preset with the post-processing ignored."""
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    nodes = [
        (
            node.get_friendly_name(),
            "Conv" if "Convolution" in node.get_type_name() else node.get_type_name(),
            [value.get_source_output().get_node().get_friendly_name() for value in node.inputs()],
            [node.get_friendly_name()],
        )
        for node in model.get_ordered_ops()
    ]
    ignored = set(_after_convolutions(nodes)) & _quantisable(model)
    quantised = nncf.quantize(
        model,
        nncf.Dataset([data[None] for data in inputs]),
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(names=sorted(ignored), validate=False),
    )
    openvino.save_model(quantised, target, compress_to_fp16=False)


def _quantisable(model: object) -> set[str]:
    """Names of the operators that compute."""
    nodes = model.get_ordered_ops()  # type: ignore[attr-defined]
    return {n.get_friendly_name() for n in nodes if n.get_type_name() not in ("Constant", "Parameter", "Result")}


GraphNode = tuple[str, str, Sequence[str], Sequence[str]]  # name, type, what it reads, what it makes


def _after_convolutions(nodes: Sequence[GraphNode]) -> list[str]:
    """The names of nodes, given in their order, that are no convolution and lead to none."""
    return list(_backwards(nodes))


def _backwards(nodes: Sequence[GraphNode]) -> Iterator[str]:
    needed: set[str] = set()
    for name, kind, inputs, outputs in reversed(nodes):
        if kind == "Conv" or needed.intersection(outputs):
            needed.update(inputs)
        else:
            yield name


if __name__ == "__main__":
    main(sys.argv[1:])
