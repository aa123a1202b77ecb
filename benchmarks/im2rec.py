"""Images per second of tools/im2rec.py beside mxnet's own im2rec, both as commands, on the same generated images.

python -m benchmarks.im2rec          (about three minutes)

The time is that of the whole command: start, reading, encoding, writing. Both must leave the same .rec and .idx.
"""

import itertools
import os
import statistics
import subprocess  # noqa: S404 - this very interpreter, no shell
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.common import in_turns, median_ratio, print_table, seconds_of, verdict
from config.command_line import parse_options
from config.options import option
from machine.command import run_command
from machine.cpu import usable_threads
from machine.opencv import cv2

REQUIRED = 1.5  # times mxnet's images/s
ROOT = Path(__file__).parents[1]
OURS, MXNET = "tools/im2rec.py", "mxnet's im2rec"
MODES = {"encode": [], "resize": ["--resize", "256"], "pass-through": ["--pass-through"]}
NOISE = 8  # of the images' pixels, so that their JPEGs are as large as photographs'
JPEG_QUALITY = 90
# mxnet 1.9.1 needs numpy's removed aliases, which machine.runtime supplies.
RUN_MXNET = """
import runpy, sys
from pathlib import Path
from machine.runtime import mx
sys.argv[0] = str(Path(mx.__file__).parent / "tools" / "im2rec.py")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Im2recBenchmarkOptions:
    """What to measure."""

    images: int = option(5000, "number of images", minimum=1)
    size: tuple[int, ...] = option((375, 500), "their height,width", minimum=32)
    threads: tuple[int, ...] = option((0, 1, 2), "values of --num-thread; 0 = without: each tool's default", minimum=0)
    modes: tuple[str, ...] = option(tuple(MODES), "what to do with the images", choices=tuple(MODES))
    rounds: int = option(3, "measurements of each tool, in turns; the table has medians", minimum=1)


def main(argv: list[str]) -> None:
    """Measures both tools in all modes and prints a table."""
    options = parse_options(Im2recBenchmarkOptions, argv, "im2rec side by side")
    rows, ratios = [], {}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), options)
        for mode, threads in itertools.product(options.modes, options.threads):
            more = [*MODES[mode], *(["--num-thread", str(threads)] if threads else [])]
            candidates = {name: partial(run, Path(folder), name, more) for name in (MXNET, OURS)}
            seconds = in_turns({name: partial(seconds_of, call) for name, call in candidates.items()}, options.rounds)
            check_same_files(Path(folder), candidates)
            ratios[mode, threads] = median_ratio(seconds[MXNET], seconds[OURS])
            speeds = [f"{options.images / statistics.median(seconds[name]):.0f}" for name in (MXNET, OURS)]
            rows.append([mode, str(threads or "default"), *speeds, f"{ratios[mode, threads]:.2f}"])
    load = f"{usable_threads()} cores, load average {os.getloadavg()[0]:.1f}"
    print(f"{options.images} images of {'x'.join(map(str, options.size))}, {load}\n")
    print_table(["mode", "--num-thread", f"{MXNET}, images/s", f"{OURS}, images/s", "ratio"], rows)
    for mode in options.modes:
        ratio = ratios[mode, options.threads[0]]
        print(f"\n{mode}, first row: {ratio:.2f} times mxnet's; {verdict(ratio, REQUIRED, at_most=False)}")


def write_images(folder: Path, options: Im2recBenchmarkOptions) -> None:
    """folder/images with blurred random patches under noise, and folder/{tool}/list.lst with a box each."""
    (folder / "images").mkdir()
    height, width = options.size[0], options.size[-1]
    rng = np.random.default_rng(0)
    noise = rng.integers(-NOISE, NOISE + 1, (height, width, 3))
    lines = []
    for k in range(options.images):
        patches = rng.integers(0, 256, (12, 16, 3), np.uint8)
        smooth = cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(smooth + np.roll(noise, k, axis=1), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"images/{k:05d}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        lines.append(f"{k}\t2\t6\t{k % 20}\t0.1\t0.2\t0.6\t0.7\t0\t{k:05d}.jpg\n")
    for name in (MXNET, OURS):
        list_path(folder, name).parent.mkdir()
        list_path(folder, name).write_text("".join(lines))


def list_path(folder: Path, name: str) -> Path:
    """The list that a tool packs."""
    return folder / ("ours" if name == OURS else "mxnet") / "list.lst"


def run(folder: Path, name: str, words: Sequence[str]) -> None:
    """One run of a tool as a command; its messages are shown if it fails."""
    tool = ["-m", "tools.im2rec"] if name == OURS else ["-c", RUN_MXNET]
    prefix = str(list_path(folder, name).with_suffix(""))
    command = [sys.executable, *tool, prefix, str(folder / "images"), "--pack-label", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - see above
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")


def check_same_files(folder: Path, names: Iterable[str]) -> None:
    """RuntimeError unless the tools wrote the same bytes."""
    for suffix in (".rec", ".idx"):
        first, second = (list_path(folder, name).with_suffix(suffix).read_bytes() for name in names)
        if first != second:
            raise RuntimeError(f"the {suffix} files of the two tools differ")


if __name__ == "__main__":
    run_command(main)
