"""Writes the hyper-parameter file (YAML) of a preset or of flags, as the YOLOv3-SPP trainer reads it.

python -m tools.write_hyp --config yolov3_spp_voc hyp.yaml
"""

import importlib
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    importlib.import_module("as_module")

from common.files import write_atomically
from config.hyp_file import format_hyp, read_hyp
from config.options import option, parse_options, to_mapping
from config.run import TrainOptions
from machine.command import run_command


@dataclass(frozen=True)
class WriteHypOptions(TrainOptions):
    """train.py's options, and the file."""

    file: str = option("hyp.yaml", "file to write", words="positional")


def main(argv: list[str]) -> None:
    """Writes the file."""
    options = parse_options(
        WriteHypOptions, argv, "Writes these options' hyper-parameter file.", presets=True, files={"hyp": read_hyp}
    )
    write_atomically(Path(options.file), format_hyp(to_mapping(options)).encode("utf-8"))
    print(f"{options.file} written; read it with train.py --hyp {options.file}")


if __name__ == "__main__":
    run_command(main)
