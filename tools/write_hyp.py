"""Writes the hyper-parameter file (YAML) of a preset or of flags, as the YOLOv3-SPP trainer reads it.

python -m tools.write_hyp --config yolov3_spp_voc hyp.yaml
"""

import importlib
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    importlib.import_module("as_module")

from common.files import write_atomically
from config.command_line import parse_options
from config.hyp_file import OPTIONS, format_hyp, read_hyp
from config.options import joined_options, option, to_mapping
from machine.command import run_command
from train.options import train_options_class


@dataclass(frozen=True)
class FileOption:
    """What is written, beside train.py's options."""

    file: str = option("hyp.yaml", "file to write", words="positional")


def main(argv: list[str]) -> None:
    """Writes the file."""
    options = parse_options(
        joined_options("WriteHypOptions", FileOption, train_options_class()),
        argv,
        "Writes these options' hyper-parameter file.",
        presets=True,
        files={"hyp": read_hyp},
        example="python tools/write_hyp.py --config yolov3_spp_voc hyp.yaml",
        first=("file", *OPTIONS.values()),
    )
    write_atomically(Path(options.file), format_hyp(to_mapping(options)).encode("utf-8"))
    print(f"{options.file} written; read it with train.py --hyp {options.file}")


if __name__ == "__main__":
    run_command(main)
