"""Exports a checkpoint as a model folder: python deploy.py --help."""

from machine.command import run_command

if __name__ == "__main__":
    from deploy.main import main

    run_command(main)
