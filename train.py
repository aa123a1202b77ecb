"""Trains a detector: python train.py --help."""

from machine.command import run_command

if __name__ == "__main__":
    from train.main import main

    run_command(main)
