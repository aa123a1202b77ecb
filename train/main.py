"""The command train.py. Options are read before mxnet is imported: the number of CPU contexts sets the threads."""

from config.hyp_file import read_hyp
from config.options import parse_options
from machine.cpu import configure_threads
from machine.signals import exit_on_sigterm
from train.early_checks import check_early
from train.options import train_options_class


def main(argv: list[str]) -> int:
    """Parses the options and trains; SIGTERM ends the run as Ctrl-C does, with status 143."""
    options = parse_options(
        train_options_class(), argv, "Train a single-shot detector.", presets=True, files={"hyp": read_hyp}
    )
    check_early(options)
    configure_threads(options.cpus)
    from machine.terminal import log_to_terminal
    from train.training import run_training

    log_to_terminal()
    exit_on_sigterm()
    run_training(options)
    return 0
