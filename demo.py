"""Detects objects in images: python demo.py --help."""

from config.errors import run_command

if __name__ == "__main__":
    from detect.main import main

    run_command(main)
