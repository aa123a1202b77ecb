"""`make demo`: draws shapes, packs them, trains, evaluates, exports and detects, by the commands that a user types."""

import importlib
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    importlib.import_module("as_module")

from common.errors import TrainingError
from config.command_line import parse_options
from config.options import option
from machine.command import run_command

UNSEEN = "JPEGImages/test_0000?.jpg"  # of the images to show


EXAMPLE = "python tools/demo_run.py --end-epoch 3"


@dataclass(frozen=True)
class DemoRunOptions:
    """Options of the demonstration."""

    output: str = option("output/demo", "folder for everything", "demo")
    end_epoch: int | None = option(None, "epochs to train (default: the preset's)", "demo", minimum=1)


def main(argv: list[str]) -> int:
    """Runs all steps and ends by saying where everything is."""
    options = parse_options(
        DemoRunOptions, argv, "Shows the whole way from annotated images to detections.", example=EXAMPLE
    )
    root = Path(options.output)
    started = time.monotonic()
    for title, command in steps(root, options.end_epoch):
        print(f"\n== {title}\n$ {shlex.join(['python', *command])}", flush=True)
        status = subprocess.run([sys.executable, *command], check=False).returncode  # noqa: S603 - our own commands
        if status:
            raise TrainingError(f"this step failed with status {status}: python {shlex.join(command)}")
    print(final_message(root, time.monotonic() - started))
    return 0


def steps(root: Path, end_epoch: int | None) -> list[tuple[str, list[str]]]:
    """(title, arguments of python) of each step."""
    shapes, prefix, model = str(root / "shapes"), str(root / "ssd"), str(root / "model")
    train_rec, test_rec = str(root / "train.rec"), str(root / "test.rec")
    pack = ["tools/prepare_dataset.py", "--dataset", "pascal", "--root", shapes, "--overwrite"]
    epochs = [] if end_epoch is None else ["--end-epoch", str(end_epoch)]
    train = ["train.py", "--config", "shapes", "--train-path", train_rec, "--val-path", test_rec, "--prefix", prefix]
    return [
        ("Draw a synthetic data set", ["tools/make_shapes.py", "--output", shapes, "--train", "800", "--test", "200"]),
        ("Pack the training images", [*pack, "--set", "trainval", "--target", str(root / "train.lst")]),
        ("Pack the unseen images", [*pack, "--set", "test", "--target", str(root / "test.lst")]),
        ("Train, validating each epoch", [*train, *epochs, "--overwrite"]),
        ("Evaluate", ["evaluate.py", "--prefix", prefix, "--rec-path", test_rec, "--json", str(root / "result.json")]),
        ("Export", ["deploy.py", "--prefix", prefix, "--output", model]),
        (
            "Detect in unseen images",
            ["demo.py", "--model", model, "--images", f"{shapes}/{UNSEEN}", "--output", str(root / "pictures"),
             "--json", str(root / "detections.json")],
        ),
    ]  # fmt: skip


def final_message(root: Path, seconds: float) -> str:
    """Where everything is, and the commands for the user's own folder."""
    score = json.loads((root / "result.json").read_text())["mAP"]
    return f"""
== Done in {seconds / 60:.1f} minutes: VOC07 mAP {score:.3f} on 200 unseen images
pictures with boxes    {root}/pictures
training curve         {root}/ssd-curves.png
detections as JSON     {root}/detections.json
exported model         {root}/model

Your own images (VOC layout: Annotations/*.xml, JPEGImages/, ImageSets/Main/*.txt):
  python tools/prepare_dataset.py --dataset pascal --root YOUR_FOLDER --set trainval --target data/train.lst
  python tools/prepare_dataset.py --dataset pascal --root YOUR_FOLDER --set test --target data/val.lst \\
    --class-names data/train.json
  python train.py --config few_images --pretrained imagenet --prefix output/mine
  python deploy.py --prefix output/mine --epoch best --output output/mine-model
  python demo.py --model output/mine-model --images 'YOUR_FOLDER/JPEGImages/*.jpg' --output output/pictures
(`python` is .venv/bin/python; `source .venv/bin/activate` makes it so.)"""


if __name__ == "__main__":
    run_command(main)
