"""What can be checked of a run's options before mxnet is imported, which takes seconds."""

from pathlib import Path

from common.errors import CheckpointError, DataError
from common.files import check_prefix
from symbol.registry import family_of
from train.options import TrainOptions, stages


def check_early(options: TrainOptions) -> None:
    """OptionError for an unknown network, stages that cannot be or a prefix without name; DataError or CheckpointError
    naming a file that is not there."""
    family_of(options.network)
    stages(options)
    check_prefix(options.prefix)
    if options.pretrained:
        check_prefix(options.pretrained, "--pretrained")
    check_records(options)
    for flag, path in (("--train-list", options.train_list), ("--val-list", options.val_list)):
        if path and not Path(path).is_file():
            raise DataError(f"{flag} {path}: no such file; make it with tools/im2rec.py")
    weights = Path(f"{options.pretrained}-{options.epoch:04d}.params")
    if options.pretrained and not weights.is_file():
        raise CheckpointError(f"{weights}: no such file; check --pretrained and --epoch")


def check_records(options: TrainOptions) -> None:
    """DataError where a record is missing."""
    for flag, path in (("--train-path", options.train_path), ("--val-path", options.val_path)):
        if (path or flag == "--train-path") and not Path(path).is_file():
            raise DataError(f"{flag} {path}: no such file; make it with tools/prepare_dataset.py")
