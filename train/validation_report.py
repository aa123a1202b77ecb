"""PREFIX-report: the report of the newest validation, which a process of low priority makes while the training goes on.

The process is `python -m train.validation_report FILE` and never loads mxnet. While one is at work, later validations
wait; the newest of them is next.
"""

import io
import json
import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_atomically
from dataset.workers import ONE_THREAD
from evaluate.report import record_pictures, write_report
from evaluate.sets import record_results
from train.options import TrainOptions

ROOT = Path(__file__).parent.parent
FILE = ".validation.npz"  # in the folder of the report, until the process has read it
LOWEST_PRIORITY = 19  # the training's threads get 1.5 % less at most, as Linux weighs 15 against 1024
ARRAYS = ("records", "sizes", "detections", "truths")
logger = logging.getLogger(__name__)


class ValidationReport:
    """Starts the process after a validation."""

    def __init__(self, options: TrainOptions) -> None:
        """options: of the run; its prefix names the folder."""
        self.folder = Path(f"{options.output.prefix}-report")
        self._options = options
        self._content: bytes | None = None  # of the newest validation, until it is written
        self._process: subprocess.Popen[bytes] | None = None
        self._warned = False

    def renew(self, epoch: int, class_names: Any, *arrays: np.ndarray) -> None:
        """Takes what served_rows says of the validation of an epoch, from 1; an older report stays until it is done."""
        data, validation = self._options.data, self._options.validation
        about = {
            "title": f"{self._options.output.prefix}, epoch {epoch}, on {data.val_path}",
            "record": [data.val_path, data.val_list],
            "class_names": list(class_names),
            "rule": {"overlap": validation.overlap, "use_difficult": validation.use_difficult},
        }
        stream = io.BytesIO()
        np.savez(stream, about=np.array(json.dumps(about)), **dict(zip(ARRAYS, arrays, strict=True)))
        self._content = stream.getvalue()
        self._start()

    def finish(self) -> None:
        """Returns when the report of the newest validation is there."""
        while self._process:
            self._process.wait()
            self._start()

    def _start(self) -> None:
        """Starts the process, unless one is at work or nothing waits."""
        if self._process and self._process.poll() is None:
            return
        if self._process:
            told = self._process.communicate()[1].decode(errors="replace").strip()
            if self._process.returncode:
                self._warn(told.rpartition("\n")[2])
            self._process = None
        content, self._content = self._content, None
        if content is None:
            return
        path = self.folder / FILE
        try:
            self.folder.mkdir(exist_ok=True)
            write_atomically(path, content)
            self._process = _process_of(path)
        except OSError as error:
            self._warn(str(error))

    def _warn(self, reason: str) -> None:
        if not self._warned:
            logger.warning("%s cannot be written (%s); training goes on", self.folder, reason)
        self._warned = True


def _process_of(path: Path) -> "subprocess.Popen[bytes]":
    """A process group of its own: Ctrl-C in the terminal is the training's business."""
    paths = [str(ROOT), *(one for one in sys.path if one)]
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-P", "-m", "train.validation_report", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        process_group=0,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    with suppress(OSError):  # it has ended already
        os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST_PRIORITY)  # from its first import on
    return process


def main(path: Path) -> None:
    """Writes the report of a validation into the folder of the file that has it, and removes the file."""
    with np.load(path, allow_pickle=False) as content:
        arrays, about = [content[name] for name in ARRAYS], json.loads(str(content["about"]))
    path.unlink()
    record, list_path = about["record"]
    results = record_results(record, list_path, about["class_names"], *arrays)
    pictures = record_pictures(record, results)
    write_report(path.parent, about["title"], results, pictures, **about["rule"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
