"""Evaluates a checkpoint: python evaluate.py --help."""

import common.first  # noqa: F401 - a missing package is one sentence
from machine.command import run_command

if __name__ == "__main__":
    from evaluate.main import main

    run_command(main)
