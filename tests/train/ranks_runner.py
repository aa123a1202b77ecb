"""One of several workers: trains the runs of a JSON file, one after the other, and sends its server a pickle.

test_several.py starts it by tools/launch.py: one job for all runs, as its processes take seconds to start.
"""

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

from config.options import from_mapping
from train.options import train_options_class
from train.preflight import preflight_of
from train.ranks import open_ranks
from train.training import fit

OPTIMIZER = 0  # number of the command by which mxnet's workers send a pickled optimizer


class Harmful:
    """Unpickled, it leaves a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


def main(path: str) -> None:
    """path: of a JSON list of {option: value}."""
    with open_ranks("dist_sync") as ranks:
        if ranks.writes:
            ranks._store._send_command_to_servers(OPTIMIZER, pickle.dumps(Harmful(f"{path}.unpickled"), 0).decode())
        for values in json.loads(Path(path).read_text(encoding="utf-8")):
            plan = preflight_of(ranks, from_mapping(train_options_class(), values))
            fit(replace(plan, lines=()))


if __name__ == "__main__":
    main(sys.argv[1])
