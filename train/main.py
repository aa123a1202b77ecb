"""The command train.py. Options are read before mxnet is loaded: the number of CPU contexts sets the threads."""

from config.command_line import parse_options
from config.hyp_file import read_hyp
from machine.command import exit_on_sigterm
from machine.cpu import configure_threads
from train.checks import check_early
from train.options import train_options_class
from train.ps_lite import check_job, serve, serves

EXAMPLE = "python train.py --train-path data/train.rec --val-path data/val.rec --prefix output/ssd"
# What --help shows, for a first run; --help-all has all.
FIRST = (
    *("train_path", "val_path", "prefix", "network", "data_shape", "batch_size", "end_epoch", "gpus", "cpu", "dtype"),
    *("pretrained", "epoch", "resume", "finetune", "overwrite", "optimizer", "lr", "lr_steps", "warmup_epochs"),
    *("time_limit", "patience"),
    *(
        "accumulate",
        "ema",
        "freeze",
        "augment",
        "resize_mode",
        "metrics",
        "keep",
        "live",
        "tensorboard",
        "workers",
        "seed",
    ),
)


def main(argv: list[str]) -> int:
    """Parses the options and trains; SIGTERM ends the run as Ctrl-C does, with status 143.

    A process whose DMLC_ROLE is server or scheduler serves the workers of its job, whatever the options are.
    """
    if serves():
        serve()
        return 0
    options = parse_options(
        train_options_class(),
        argv,
        "Trains a single-shot object detector on a packed data set (tools/prepare_dataset.py makes one).",
        presets=True,
        files={"hyp": read_hyp},
        example=EXAMPLE,
        first=FIRST,
    )
    check_job(options.device.kv_store)
    check_early(options)
    configure_threads(options.device.cpus)
    from machine.command import log_to_terminal
    from train.profiling import profile_training
    from train.training import run_training

    log_to_terminal()
    exit_on_sigterm()
    if options.output.profile:
        profile_training(options)
        return 0
    run_training(options)
    return 0
