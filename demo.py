"""Detects objects in images: python demo.py --help."""

from machine.command import run_command


def main(argv: list[str]) -> int:
    """Imports what it needs here, so that a missing package is one sentence, too."""
    from detect.main import main as detect

    return detect(argv)


if __name__ == "__main__":
    run_command(main)
