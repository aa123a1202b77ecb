"""Evaluates a checkpoint: python evaluate.py --help."""

from machine.command import run_command

if __name__ == "__main__":
    from evaluate.main import main

    run_command(main)
