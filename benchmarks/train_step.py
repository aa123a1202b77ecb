"""Whole training beside the bare step of the same symbol, and beside PyTorch.

python -m benchmarks.train_step --network vgg16_reduced --rec data/train.rec
python -m benchmarks.train_step --network mobilenet --rec data/train.rec
python -m benchmarks.train_step --network yolov3_spp --rec data/train.rec
python -m benchmarks.train_step --network efficientdet_d0 --rec data/train.rec
python -m benchmarks.train_step --network vgg16_reduced --rec data/train.rec --dtype bfloat16
(about three minutes each; PyTorch's rows need torch in the same environment or in that of --python)

- whole training: mx.mod.Module.fit as train.py has it: DetRecordIter with the SSD augmentation and the assigner in its
  workers, the losses, the update, the training metric, the guard against non-finite losses, progress lines. Ends of
  epochs are in it where they fall; checkpoints and validation are not.
- bare step: forward_backward and update of the same bound Module on a constant batch, one wait for all its steps.
- PyTorch eager and channels-last: benchmarks/torch_peers.py on a constant batch.
- With --dtype bfloat16 whole training and bare step are in bfloat16; the bare step of float32, and PyTorch
  channels-last under autocast, are measured beside them.

The largest memory of this process is printed, too: of the whole training and the bare step together, without workers.

They run in turns, a few steps each: fit is stopped in its batch-end callback while the others run. The first steps
after a stop are not counted, so that what the workers had ready does not flatter fit.
"""

import importlib.util
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Seconds, machine, median_ratio, next_line, print_table, verdict
from benchmarks.inference_models import FAMILIES
from common.errors import OptionError
from common.sizes import input_size
from config.augment_options import TrainAugment
from config.command_line import parse_options
from config.options import option
from dataset.batch_spec import BatchSpec
from dataset.iterator import RecordIter, open_batches
from graph.mixed_precision import BFLOAT16, FLOAT32
from machine.command import run_command
from machine.cpu import usable_threads
from machine.runtime import mx
from symbol.darknet_sections import with_classes, with_width
from symbol.detector.efficientdet import EfficientDet
from symbol.detector.yolo import YOLOv3
from symbol.detector.yolo import find_row as find_yolo_row
from symbol.registry import family_of
from symbol.symbol_factory import get_assigner, get_symbol, get_symbol_train, label_names
from train.callbacks import FiniteGuard
from train.metric import make_metric
from train.module import DetectionModule
from train.progress import Progress
from train.stages import without_det

WHOLE, BARE, EAGER, CHANNELS_LAST = "whole training", "bare step", "PyTorch eager", "PyTorch channels-last"
AS_IT_IS = "bare step, graph not rewritten"
AUTOCAST = "PyTorch channels-last, bfloat16 autocast"
BARE_FLOAT32 = "bare step, float32"
PEERS = "benchmarks.torch_peers"
TORCH_VARIANTS = {EAGER: "eager", CHANNELS_LAST: "channels-last", AUTOCAST: "autocast"}
UNCOUNTED_STEPS = 3  # before each measurement of fit: as many batches as the iterator makes ahead
SETTLE_SECONDS = 1.0  # for the workers to finish what they have begun
BARE_WARM_UP = 2
OPTIMIZER = {"learning_rate": 1e-4, "momentum": 0.9, "wd": 5e-4, "rescale_grad": 1.0}


@dataclass(frozen=True)
class Setting:
    """The network that is measured, and the least speed of whole training relative to the bare step."""

    size: int
    batch_size: int
    width: float
    required: float
    steps: int
    torch_steps: int
    rounds: int
    memory: float = 0.0  # GiB that are allowed; 0 = not limited


SETTINGS = {
    "vgg16_reduced": Setting(300, 8, 1.0, required=0.95, steps=2, torch_steps=1, rounds=4),
    "mobilenet": Setting(320, 16, 0.5, required=0.85, steps=12, torch_steps=4, rounds=9),
    "gluoncv:mobilenetv2_1.0": Setting(300, 16, 1.0, required=0.9, steps=3, torch_steps=2, rounds=5),
    "efficientnet_lite0": Setting(256, 16, 1.0, required=0.9, steps=4, torch_steps=3, rounds=5),
    "yolov3_spp": Setting(416, 4, 1.0, required=0.9, steps=2, torch_steps=1, rounds=4, memory=12.0),
    "yolov3_spp_mini": Setting(256, 16, 1.0, required=0.85, steps=8, torch_steps=4, rounds=7),
    "efficientdet_d0": Setting(512, 4, 1.0, required=0.9, steps=2, torch_steps=2, rounds=4, memory=12.0),
    "efficientdet_lite0": Setting(320, 8, 1.0, required=0.9, steps=4, torch_steps=3, rounds=5),
}


# Arguments of the iterator: SSD's are its defaults, YOLOv3 reads pixels / 255.
PIXELS: dict[bool, dict[str, Any]] = {False: {}, True: {"mean_pixels": (0, 0, 0), "std": (255, 255, 255)}}


@dataclass(frozen=True)
class TrainStepOptions:
    """What to measure; 0 = the network's own number."""

    rec: str = option("", "record file to train on")
    network: str = option("mobilenet", "network", choices=tuple(SETTINGS))
    rounds: int = option(0, "measurements of each kind, in turns; the table has medians", minimum=0)
    steps: int = option(0, "steps of one measurement", minimum=0)
    workers: int | None = option(None, "processes that prepare batches (default: as train.py)", minimum=0)
    torch: bool = option(True, "measure PyTorch too, if it is installed")
    as_it_is: bool = option(False, "measure the bare step of the graph that is not rewritten for oneDNN, too")
    dtype: str = option(FLOAT32, "number format of training", choices=(FLOAT32, BFLOAT16))
    float32: bool = option(True, "beside bfloat16, measure the bare step of float32, too; without it memory is its own")
    python: str = option("", "the Python of an environment that has torch ('' = this one)")


class TorchPeer:
    """The process of PEERS."""

    def __init__(self, options: TrainStepOptions, num_classes: int) -> None:
        """Starts it and waits until both variants are ready."""
        setting = SETTINGS[options.network]
        given = {"size": input_size(setting.size), "batch": setting.batch_size, "threads": usable_threads()}
        given |= {"classes": num_classes, **described(options.network, setting, num_classes)}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "network.json")
            file.write_text(json.dumps(given), "utf-8")
            command = [options.python or sys.executable, "-m", PEERS, str(file)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
            ready = json.loads(next_line(self._process, PEERS))
        self.parameters, self.version = ready["parameters"], ready["version"]

    def seconds(self, variant: str, steps: int) -> float:
        """Makes steps and returns their seconds."""
        assert self._process.stdin
        print(variant, steps, file=self._process.stdin, flush=True)
        return float(next_line(self._process, PEERS))

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def described(network: str, setting: Setting, num_classes: int) -> dict[str, Any]:
    """What benchmarks.torch_peers must know of a network."""
    family = family_of(network)
    if isinstance(family, YOLOv3):
        return darknet_layers(network, setting, num_classes)
    kind = "efficientdet" if isinstance(family, EfficientDet) else "ssd"
    heads = re.compile(FAMILIES[kind].heads)
    internals = get_symbol(network, setting.size, num_classes, width=setting.width).get_internals()
    symbol = mx.sym.Group([internals[name] for name in internals.list_outputs() if heads.fullmatch(name)])
    args, _, aux = symbol.infer_shape(data=(1, 3, *input_size(setting.size)))
    named = [*zip(symbol.list_arguments(), args, strict=True), *zip(symbol.list_auxiliary_states(), aux, strict=True)]
    return {"symbol": symbol.tojson(), "shapes": dict(named), "family": kind}


def darknet_layers(network: str, setting: Setting, num_classes: int) -> dict[str, Any]:
    """The sections of a YOLOv3 as benchmarks.torch_darknet reads them."""
    sections = with_classes(with_width(find_yolo_row(network).sections, setting.width), num_classes)
    return {"sections": [{"type": type(section).__name__.lower(), **asdict(section)} for section in sections]}


class Rounds:
    """Batch-end callback of fit that measures it and, while it is stopped, the others; seconds are those of a step."""

    def __init__(self, module: DetectionModule, batch: mx.io.DataBatch, options: TrainStepOptions) -> None:
        """batch: for the bare step."""
        setting = SETTINGS[options.network]
        self.modules, self.batch = {BARE: module}, batch
        self.steps, self.torch_steps = options.steps or setting.steps, setting.torch_steps
        self.rounds = options.rounds or setting.rounds
        self.peer: TorchPeer | None = None
        self.narrow = options.dtype == BFLOAT16
        self.seconds: dict[str, Seconds] = {}
        self._begin = 0.0

    @property
    def batches(self) -> int:
        """Batches that fit needs."""
        return self.rounds * (UNCOUNTED_STEPS + self.steps)

    def __call__(self, param: Any) -> None:
        """param: BatchEndParam of fit."""
        done = (param.nbatch + 1) % (UNCOUNTED_STEPS + self.steps)
        if done == UNCOUNTED_STEPS:
            mx.nd.waitall()
            self._begin = time.perf_counter()
        elif done == 0:
            mx.nd.waitall()
            self._add(WHOLE, (time.perf_counter() - self._begin) / self.steps)
            time.sleep(SETTLE_SECONDS)
            self._measure_others(warm_up=len(self.seconds) == 1)

    def _measure_others(self, warm_up: bool) -> None:
        for name, module in self.modules.items():
            if warm_up:
                self._bare_seconds(module, BARE_WARM_UP)
            self._add(name, self._bare_seconds(module, self.steps))
        for name, variant in TORCH_VARIANTS.items():
            if self.peer and (name == AUTOCAST) <= self.narrow:
                if warm_up:
                    self.peer.seconds(variant, 1)
                self._add(name, self.peer.seconds(variant, self.torch_steps) / self.torch_steps)

    def _bare_seconds(self, module: DetectionModule, steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            module.forward_backward(self.batch)
            module.update()
        mx.nd.waitall()
        return (time.perf_counter() - begin) / steps

    def _add(self, name: str, seconds: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)


def make_iterator(options: TrainStepOptions) -> RecordIter:
    """The training iterator of train.py."""
    setting = SETTINGS[options.network]
    spec = BatchSpec(
        options.rec,
        setting.batch_size,
        setting.size,
        augment=TrainAugment(),
        assigner=get_assigner(options.network, setting.size, 1, width=setting.width),
        **PIXELS[isinstance(family_of(options.network), YOLOv3)],
        shuffle=True,
        seed=1,
        workers=options.workers,
    )
    return open_batches(spec)


def make_module(options: TrainStepOptions, num_classes: int, **changes: Any) -> DetectionModule:
    """The Module of train.py; changes: arguments of it."""
    setting = SETTINGS[options.network]
    arguments = (options.network, setting.size, num_classes)
    symbol = without_det(get_symbol_train(*arguments, width=setting.width))
    return DetectionModule(
        symbol,
        get_symbol(*arguments, width=setting.width),
        label_names(options.network),
        [mx.cpu()],
        **{"dtype": options.dtype, **changes},
    )


def train(options: TrainStepOptions, iterator: RecordIter, peer: TorchPeer | None) -> dict[str, Seconds]:
    """Runs fit with all measurements in it; returns seconds of a step by name."""
    module = make_module(options, iterator.num_classes)
    rounds = Rounds(module, iterator.next(), options)
    rounds.peer = peer
    if options.as_it_is:
        rounds.modules[AS_IT_IS] = _ready(options, iterator, rewrite_graph=False)
    if rounds.narrow and options.float32:
        rounds.modules[BARE_FLOAT32] = _ready(options, iterator, dtype=FLOAT32)
    iterator.reset()
    module.fit(
        mx.io.ResizeIter(iterator, rounds.batches),
        eval_metric=make_metric(module.symbol),
        batch_end_callback=[FiniteGuard(), Progress(iterator.batch_size, 20, rounds.batches, 1), rounds],
        kvstore="local",
        optimizer_params=OPTIMIZER,
        initializer=mx.init.Xavier(),
        num_epoch=1,
    )
    return rounds.seconds


def _ready(options: TrainStepOptions, iterator: RecordIter, **changes: Any) -> DetectionModule:
    """A Module like that of train, which is ready, with other arguments."""
    module = make_module(options, iterator.num_classes, **changes)
    module.bind(iterator.provide_data, iterator.provide_label)
    module.init_params(mx.init.Xavier())
    module.init_optimizer(optimizer_params=OPTIMIZER)
    return module


def count_parameters(options: TrainStepOptions, num_classes: int) -> int:
    """Parameters that the symbol learns."""
    setting = SETTINGS[options.network]
    symbol = get_symbol(options.network, setting.size, num_classes, width=setting.width)
    shapes = symbol.infer_shape(data=(1, 3, *input_size(setting.size)))[0]
    named = zip(symbol.list_arguments(), shapes, strict=True)
    return sum(mx.nd.empty(shape).size for name, shape in named if name != "data")


def start_torch(options: TrainStepOptions, num_classes: int) -> TorchPeer | None:
    """The peer, or None where torch is not installed or not wanted."""
    if not options.torch or not (options.python or importlib.util.find_spec("torch")):
        return None
    peer, wanted = TorchPeer(options, num_classes), count_parameters(options, num_classes)
    if peer.parameters != wanted:
        peer.close()
        raise RuntimeError(f"{options.network} has {wanted} parameters here, but {peer.parameters} in torch_peers")
    return peer


def report(options: TrainStepOptions, seconds: dict[str, Seconds], version: str | None) -> None:
    """Prints the table and the ratio that is required."""
    setting = SETTINGS[options.network]
    shown = f"{options.network} {setting.width:g} at {setting.size}, batch {setting.batch_size}"
    print(f"{shown}, {options.dtype}; {machine()}\n")
    rows = []
    more = [AS_IT_IS] * options.as_it_is + [BARE_FLOAT32] * (options.dtype == BFLOAT16 and options.float32)
    for name in (WHOLE, BARE, *more, EAGER, CHANNELS_LAST, *[AUTOCAST] * (options.dtype == BFLOAT16)):
        title = f"{name} {version}" if version and name in TORCH_VARIANTS else name
        if name not in seconds:
            missing = "not measured" if options.python or importlib.util.find_spec("torch") else "torch not installed"
            rows.append((title, missing, "", ""))
            continue
        step = statistics.median(seconds[name])
        speed = median_ratio(seconds[BARE], seconds[name])
        rows.append((title, f"{1e3 * step:.0f}", f"{setting.batch_size / step:.1f}", f"{speed:.3f}"))
    print_table(("training", "ms a step", "images/s", "speed relative to the bare step"), rows)
    gibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    limit = f" ({verdict(gibibytes, setting.memory, at_most=True)})" if setting.memory else ""
    print(f"\nlargest memory of this process: {gibibytes:.1f} GiB{limit}")
    ratio = median_ratio(seconds[BARE], seconds[WHOLE])
    print(
        f"\n{options.network}: whole training runs at {ratio:.3f}x the bare step "
        f"({verdict(ratio, setting.required, at_most=False)})"
    )


def main(argv: list[str]) -> None:
    """Measures and prints."""
    options = parse_options(TrainStepOptions, argv, "Whole training beside the bare step and PyTorch")
    if not options.rec:
        raise OptionError("--rec is missing: name a record file, e.g. one made by tools/prepare_dataset.py")
    iterator = make_iterator(options)
    peer = start_torch(options, iterator.num_classes)
    try:
        seconds = train(options, iterator, peer)
    finally:
        iterator.close()
        if peer:
            peer.close()
    report(options, seconds, peer.version if peer else None)


if __name__ == "__main__":
    run_command(main)
