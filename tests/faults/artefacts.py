"""The files that faults are injected into: records, a short run with its checkpoints, the words of its commands."""

from collections.abc import Sequence
from pathlib import Path

from config.options import replace_options
from tests.dataset.layouts import images, voc
from tests.train.tiny import NETWORK, flags, write_record
from train.options import TrainOptions, train_options

EPOCHS = 3


def run_options(folder: Path) -> TrainOptions:
    """A run of three epochs of three batches, which draws random views and averages its weights."""
    records = [write_record(folder / f"{name}.rec", count, seed) for name, count, seed in (("t", 12, 1), ("v", 6, 2))]
    return train_options(
        **NETWORK,
        train_path=records[0],
        val_path=records[1],
        batch_size=4,
        workers=0,
        prefix=str(folder / "run" / "t"),
        end_epoch=EPOCHS,
        lr=0.05,
        ema=0.9,
        cpu=True,
    )


def train_words(options: TrainOptions, prefix: Path, *more: str) -> list[str]:
    """The words of train.py for these options under another prefix."""
    return [*flags(replace_options(options, prefix=str(prefix))), *more]


def deploy_words(options: TrainOptions, output: Path) -> list[str]:
    """Those of deploy.py, with an ONNX file."""
    return ["--prefix", options.output.prefix, "--output", str(output), "--onnx"]


def annotated_folder(root: Path, names: Sequence[str] = tuple("abcdefgh")) -> Path:
    """A folder of pictures with VOC annotations."""
    images(root, *(f"JPEGImages/{name}.jpg" for name in names))
    voc(root, *(f"Annotations/{name}.xml" for name in names))
    return root
