"""The command train.py. Options are read before mxnet is imported: the number of CPU contexts sets the threads."""

from config import threads
from config.options import parse_options
from config.run import TrainOptions


def main(argv: list[str]) -> int:
    """Parses the options and trains."""
    options = parse_options(TrainOptions, argv, "Train a single-shot detector.", presets=True)
    threads.configure(options.cpus)
    from train.run_files import log_to_terminal
    from train.train_net import train_net

    log_to_terminal()
    train_net(options)
    return 0
