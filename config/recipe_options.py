"""Options of the training recipe: accumulation, warm-up, averaged weights, when to validate and what to keep."""

from dataclasses import dataclass

from common.errors import OptionError
from config.options import option

SCHEDULES = ("steps", "step_epochs", "cosine", "cosine_epochs", "plateau")


@dataclass(frozen=True)
class RecipeOptions:
    """Options of train.py that decide how often and by how much weights change, and what of a run is kept."""

    accumulate: int = option(
        1, "batches whose gradients are added up before each update", "schedule", minimum=1, maximum=4096
    )
    nominal_batch: int = option(
        0, "images of an update: --accumulate becomes round(nominal / batch size); 0 = off", "schedule", minimum=0
    )
    lr_schedule: str = option(
        "steps",
        "steps = multiply by --lr-factor at --lr-steps; step_epochs = each --lr-step-epochs epochs; cosine = down to "
        "--lr-final with each update; cosine_epochs = the same with each epoch; plateau = multiply by "
        "--lr-factor when the validation loss does not fall (with --val-loss)",
        "schedule",
        choices=SCHEDULES,
    )
    lr_steps: tuple[str, ...] = option(
        ("80", "160"),
        "epochs (80) or updates (80000i) at which the learning rate changes",
        "schedule",
        pattern=(r"\d+i|\d+(\.\d*)?([eE]\d+)?", "epochs like 80 or updates like 80000i"),
    )
    lr_step_epochs: int = option(1, "epochs from one step of step_epochs to the next", "schedule", minimum=1)
    lr_factor: float = option(0.1, "factor at each of these epochs; >= 1 = constant rate", "schedule", minimum=0.0)
    lr_patience: int = option(
        10, "validations in a row without a lower loss that plateau tolerates", "schedule", minimum=0
    )
    lr_final: float = option(
        0.0, "learning rate at the end of the cosine; the lowest one of plateau", "schedule", minimum=0.0
    )
    warmup_epochs: float = option(0.0, "epochs over which the learning rate rises linearly", "schedule", minimum=0.0)
    warmup_factor: float = option(
        0.0, "share of the learning rate at which the warm-up begins", "schedule", minimum=0.0, maximum=1.0
    )
    warmup_momentum: float | None = option(
        None, "momentum at which the warm-up begins (default: --momentum)", "schedule", minimum=0.0, maximum=1.0
    )
    warmup_bias_lr: float | None = option(
        None,
        "learning rate of biases (and of batch norm's beta) at which the warm-up begins (default: as all others)",
        "schedule",
        minimum=0.0,
        maximum=100.0,
    )
    ema: float = option(
        0.0,
        "decay of the moving average of the weights, which is validated and saved, e.g. 0.9999; 0 = none",
        "schedule",
        minimum=0.0,
        maximum=0.999999,
    )
    ema_ramp: float = option(
        2000.0,
        "updates over which the decay of --ema rises: decay * (1 - exp(-updates / ramp)); less for short runs",
        "schedule",
        minimum=1.0,
    )
    eval_every: str = option(
        "1",
        "epochs between validations (the last epoch is always validated), or last = that one alone",
        "validation",
        pattern=(r"[1-9]\d*|last", "a number of epochs or `last`"),
    )
    val_loss: bool = option(False, "compute the training losses on the validation record, too", "validation")
    save_every: str = option(
        "1",
        "epochs between checkpoints (10), or updates between snapshots PREFIX-iter-NNNN (5000i); the last epoch and "
        "the best are always kept",
        "output",
        pattern=(r"[1-9]\d*i?", "epochs like 10 or updates like 5000i"),
    )
    save_best_only: bool = option(False, "keep the best checkpoint and that of the last epoch alone", "output")


def batches_per_update(options: RecipeOptions, batch_size: int) -> int:
    """--accumulate, or what --nominal-batch makes of it; OptionError where both are given."""
    if options.nominal_batch and options.accumulate > 1:
        raise OptionError("--accumulate and --nominal-batch exclude each other; give one of them")
    return max(round(options.nominal_batch / batch_size), 1) if options.nominal_batch else options.accumulate
