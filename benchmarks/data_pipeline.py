"""Images per second of both engines beside mx.io.ImageDetRecordIter with the same augmentation on the same record.

python -m benchmarks.data_pipeline --rec data/train.rec
"""

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from common.errors import OptionError
from config.augment_options import TrainAugment
from config.command_line import parse_options
from config.config import NO_AUGMENT, classic_arguments
from config.groups import DATA_ENGINES
from config.options import option
from dataset.batch_spec import BatchSpec
from dataset.iterator import open_batches
from dataset.recordio import RecordReader
from machine.command import run_command
from machine.runtime import mx

MEAN = (123, 117, 104)
# The values of the YOLOv3-SPP trainer (ultralytics/yolov3, train.py).
MOSAIC = replace(
    NO_AUGMENT, mosaic_prob=1.0, degrees=1.98, translate=0.05, scale=0.05, shear=0.641, hsv_h=0.0138, hsv_s=0.678,
    hsv_v=0.36, rand_mirror_prob=0.5, fill_value=114,
)  # fmt: skip
AUGMENTS = {"ssd": TrainAugment(), "none": None, "mosaic": MOSAIC}
UNCHECKED = 1 << 20  # classes: the classic iterator does not check them either


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure."""

    rec: str = option("", "record file to read")
    batch_size: int = option(32, "images per batch", minimum=1)
    data_shape: int = option(300, "side of the network input", minimum=32)
    workers: tuple[int, ...] = option((1, 2), "numbers of workers or decoding threads", minimum=1)
    seconds: float = option(4.0, "length of one measurement", minimum=0.1)
    rounds: int = option(
        5, "measurements of each pipeline, in turns, each in its own process; the table has their median", minimum=1
    )
    augment: str = option(
        "ssd",
        "ssd = the classic augmentation, none = resize only, mosaic = YOLOv3-SPP's (python engine alone)",
        choices=("ssd", "none", "mosaic"),
    )


def main(argv: list[str]) -> None:
    """Measures all pipelines in turns and prints a table."""
    options = parse_options(BenchmarkOptions, argv, "Data pipelines side by side")
    if not options.rec:
        raise OptionError("--rec is missing: name a record file, e.g. one made by tools/prepare_dataset.py")
    images = len(RecordReader(options.rec))
    makers: dict[str, Callable[[BenchmarkOptions, int], mx.io.DataIter]]
    makers = {f"--engine {engine}": partial(our_iterator, engine) for engine in DATA_ENGINES}
    makers = {"mx.io.ImageDetRecordIter": classic_iterator} | makers
    if options.augment == "mosaic":
        makers = {f"--engine {DATA_ENGINES[0]}": makers[f"--engine {DATA_ENGINES[0]}"]}
    speeds: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.rounds):
        for workers, (name, make) in itertools.product(options.workers, makers.items()):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                speed = alone.submit(measure, make, options, workers).result()
            speeds.setdefault((name, workers), []).append(speed)
    print(f"{images} images, input {options.data_shape}, batch {options.batch_size}, augmentation {options.augment}\n")
    print_table({key: statistics.median(values) for key, values in speeds.items()})


def our_iterator(engine: str, options: BenchmarkOptions, workers: int) -> mx.io.DataIter:
    """A pipeline of this project."""
    spec = BatchSpec(
        options.rec,
        options.batch_size,
        options.data_shape,
        augment=AUGMENTS[options.augment],
        mean_pixels=MEAN,
        num_classes=UNCHECKED,
        shuffle=True,
        workers=workers,
    )
    return open_batches(spec, engine)


def classic_iterator(options: BenchmarkOptions, threads: int) -> mx.io.DataIter:
    """MXNet's own, with the arguments of the classic cfg.train; it never uses more than cores - 1 threads."""
    red, green, blue = MEAN
    return mx.io.ImageDetRecordIter(
        path_imgrec=options.rec,
        batch_size=options.batch_size,
        data_shape=(3, options.data_shape, options.data_shape),
        mean_r=red,
        mean_g=green,
        mean_b=blue,
        shuffle=True,
        preprocess_threads=threads,
        verbose=False,
        ctx="cpu",
        **classic_arguments(AUGMENTS[options.augment]),
    )


def measure(make: Callable[[BenchmarkOptions, int], mx.io.DataIter], options: BenchmarkOptions, workers: int) -> float:
    """Images per second over whole epochs that last options.seconds or a little longer, after one epoch to warm up."""
    iterator = make(options, workers)
    serve_epoch(iterator)
    begin, images = time.perf_counter(), 0
    while time.perf_counter() - begin < options.seconds:
        images += serve_epoch(iterator)
    return images / (time.perf_counter() - begin)


def serve_epoch(iterator: mx.io.DataIter) -> int:
    """Runs through an epoch as a training loop would; returns the number of images."""
    images = 0
    for batch in iterator:
        batch.data[0].wait_to_read()
        images += iterator.batch_size - batch.pad
    iterator.reset()
    return images


def print_table(speeds: dict[tuple[str, int], float]) -> None:
    """One row a pipeline; the ratio is to ImageDetRecordIter with as many threads."""
    print("| pipeline | workers | images/s | ratio |\n|---|---|---|---|")
    for (name, workers), speed in speeds.items():
        classic = speeds.get(("mx.io.ImageDetRecordIter", workers))
        print(f"| {name} | {workers} | {speed:.0f} | {f'{speed / classic:.2f}' if classic else '-'} |")


if __name__ == "__main__":
    run_command(main)
