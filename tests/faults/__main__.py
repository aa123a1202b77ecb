"""`make faults`: kills, bit flips and inputs in their numbers, and the table of docs/reliability.md.

python -m tests.faults [--kills 100] [--flips 1000] [--inputs 100000] [--seed 0] [--only kills,flips,inputs] [--write]
python -m tests.faults --only inputs --parsers "VOC .xml" --input NUMBER     # one that was wrong, again

Status 1 where something is lost or wrong.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: no thread may be there when a process forks

PARTS = ("kills", "flips", "inputs")
MEMORY = Path("/dev/shm")
ROOM = 1 << 30  # bytes; a few MB are written at a time


def main(words: list[str]) -> int:
    """Injects the faults and prints the table."""
    from tests.faults import table

    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="of each phase")
    parser.add_argument("--flips", type=int, default=1000, help="of each kind of file")
    parser.add_argument("--inputs", type=int, default=100_000, help="of each parser")
    parser.add_argument("--phases", default="", help="those that are killed, with commas between them; none = all")
    parser.add_argument("--parsers", default="", help="those that are given inputs, with commas; none = all")
    parser.add_argument("--input", type=int, help="only the input of this number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--write", action="store_true", help="write the table into docs/reliability.md")
    given = parser.parse_args(words)
    parts = given.only.split(",")
    begin = time.monotonic()

    shown = os.dup(2)  # C libraries write to 2 of each damaged picture

    def tell(line: str) -> None:
        os.write(shown, f"{time.monotonic() - begin:6.0f} s  {line}\n".encode())

    with tempfile.TemporaryDirectory(prefix="faults-", dir=_place()) as name:
        try:
            rows = _injected(Path(name), given, parts, tell)
        finally:
            os.dup2(shown, 2)
    print(table.table(rows))
    wrong = table.findings(rows)
    if wrong:
        print(wrong)
    if given.write:
        table.write(rows)
    return 1 if wrong else 0


def _place() -> Path | None:
    """The folder for the files: in memory where there is room, as millions are written; None is the usual one."""
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM and os.access(MEMORY, os.W_OK) else None


def _injected(folder: Path, given: argparse.Namespace, parts: list[str], tell: object) -> list:
    rows: list = []
    if "kills" in parts:  # first: they fork from a process in which mxnet has done nothing
        from tests.faults.kills import kill_phases

        (folder / "kills").mkdir()
        rows += kill_phases(folder / "kills", given.kills, given.seed, tell, given.phases.split(","))
    if not {"flips", "inputs"} & set(parts):
        return rows
    from deploy.main import main as deploy
    from tests.faults.artefacts import deploy_words, run_options
    from tests.faults.flips import flip_files
    from tests.faults.inputs import try_inputs
    from train.training import run_training

    (folder / "files").mkdir()
    options, model = run_options(folder / "files"), folder / "files" / "model"
    run_training(options)
    deploy(deploy_words(options, model))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    logging.getLogger().handlers[:] = [logging.NullHandler()]  # the log of thousands of faults goes nowhere
    if "flips" in parts:
        rows += flip_files(options, model, given.flips, given.seed, tell)
    if "inputs" in parts:
        names = given.parsers.split(",")
        folder = folder / "files" / "inputs"
        rows += try_inputs(folder, options, model, given.inputs, given.seed, tell, names, given.input)
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
