"""Trains a detector: python train.py --help."""

from config.errors import run_command

if __name__ == "__main__":
    from train.main import main

    run_command(main)
