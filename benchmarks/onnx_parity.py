"""Detections of a model's ONNX file in ONNX Runtime and OpenVINO beside those of MXNet, on the images of a record.

python -m benchmarks.onnx_parity --model output/bccd --rec data/bccd_test.rec
"""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.common import machine, print_table
from common.errors import OptionError
from config.command_line import parse_options
from config.options import option
from machine.command import run_command
from machine.cpu import configure_threads, engine_threads

if TYPE_CHECKING:
    from model.folder import Model
    from model.manifest import Manifest

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ParityOptions:
    """What to compare."""

    model: str = option("output/bccd", "model folder or prefix of a checkpoint")
    rec: str = option("data/bccd_test.rec", "record of images")
    images: int = option(50, "images, the first ones of the record; at most so many", minimum=1)
    batch: int = option(1, "images at a time", minimum=1)
    uint8_input: bool = option(False, "the network takes uint8 pixels")


def main(argv: list[str]) -> None:
    """Exports the model, runs it everywhere and prints how the detections differ."""
    options = parse_options(ParityOptions, argv, "ONNX beside MXNet")
    configure_threads()
    from deploy.onnx_files import TOLERANCE, compare, onnx_files, total
    from model.folder import inference_model, load_model
    from model.manifest import ONNX, UINT8_NHWC

    loaded = load_model(options.model)
    model = inference_model(loaded, options.uint8_input and loaded.manifest.input_format != UINT8_NHWC)
    content = onnx_files(model)[ONNX]
    batches = inputs(model.manifest, options)
    reference, seconds = timed(mxnet_run(model, batches[0].shape), batches)
    rows = [["MXNet", str(count(reference)), "", "", "", milliseconds(seconds)]]
    for name, start in (("ONNX Runtime", onnxruntime_run), ("OpenVINO", openvino_run)):
        found, seconds = timed(start(content, options.batch), batches)
        result = total(compare(*pair) for pair in zip(reference, found, strict=True))
        figures = (count(found), result.in_place, result.unmatched, f"{result.largest:.1e}")
        rows.append([name, *map(str, figures), milliseconds(seconds)])
    images = len(batches) * options.batch
    print(f"{model.manifest.network}, {images} images of {options.rec}; {machine()}\n")
    same = f"same row, equal to {TOLERANCE:g}"
    print_table(("runtime", "detections", same, "without counterpart", "largest difference", "ms a batch"), rows)


def inputs(manifest: "Manifest", options: ParityOptions) -> list[np.ndarray]:
    """The first images of the record as the network reads them, in whole batches; OptionError if there is none.

    A shorter record gives all that it has, and what does not fill a batch is left out.
    """
    from dataset.recordio import RecordReader, unpack
    from engines.preprocess import InputWriter, read_image

    reader, writer = RecordReader(options.rec), InputWriter(manifest)
    images = min(options.images, len(reader))
    if images < options.batch:
        raise OptionError(
            f"--batch {options.batch}: no batch is full with --images {options.images} of the {len(reader)} in "
            f"{options.rec}; give a smaller --batch"
        )
    batches = []
    for start in range(0, images - options.batch + 1, options.batch):
        data = writer.batch(options.batch, options.batch)
        for offset, row in enumerate(data):
            where = f"{options.rec}, record {start + offset}"
            writer.write(read_image(unpack(reader.read(start + offset), where).image, where), row)
        batches.append(data.copy())
    return batches


def timed(run: Run, batches: list[np.ndarray]) -> tuple[list[np.ndarray], list[float]]:
    """Outputs of all batches and the seconds of each, after one run that does not count."""
    run(batches[0])
    outputs, seconds = [], []
    for data in batches:
        start = time.perf_counter()
        outputs.append(run(data))
        seconds.append(time.perf_counter() - start)
    return outputs, seconds


def count(dets: list[np.ndarray]) -> int:
    """Detections in all batches."""
    return sum(int((det[..., 0] >= 0).sum()) for det in dets)


def milliseconds(seconds: list[float]) -> str:
    """The median."""
    return f"{np.median(seconds) * 1e3:.1f}"


def mxnet_run(model: "Model", shape: tuple[int, ...]) -> Run:
    """The model in MXNet."""
    from engines.mxnet_engine import bind
    from machine.runtime import mx

    return bind(model, mx.cpu(), shape[0]).run


def onnxruntime_run(content: bytes, _batch: int) -> Run:
    """The file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = engine_threads()
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    return lambda data: session.run(["det"], {"data": data})[0]


def openvino_run(content: bytes, batch: int) -> Run:
    """The file in OpenVINO, for batches of this size alone: dynamic shapes cost it time."""
    import openvino

    core = openvino.Core()
    model = core.read_model(io.BytesIO(content))
    model.reshape({0: [batch, *list(model.inputs[0].get_partial_shape())[1:]]})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": engine_threads()}
    compiled = core.compile_model(model, "CPU", settings)
    return lambda data: compiled({"data": data})["det"]


if __name__ == "__main__":
    run_command(main)
