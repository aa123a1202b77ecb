"""Exports a checkpoint as a model folder: python deploy.py --help."""

import common.first  # noqa: F401 - a missing package is one sentence
from machine.command import run_command

if __name__ == "__main__":
    from deploy.main import main

    run_command(main)
