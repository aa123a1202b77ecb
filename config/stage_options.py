"""Options of training in two stages: at first with a part of the network frozen, then all of it."""

from dataclasses import dataclass

from config.options import option


@dataclass(frozen=True)
class StageOptions:
    """Options of train.py for a first stage whose epochs, batch size and learning rate are its own."""

    freeze_epochs: int = option(
        0,
        "two stages: up to this epoch what --freeze names (default: body) is frozen, then everything is trained, by a "
        "new optimizer with a new schedule; 0 = one stage",
        "schedule",
        minimum=0,
    )
    freeze_batch_size: int | None = option(
        None, "batch size of the frozen stage (default: --batch-size)", "schedule", minimum=1
    )
    freeze_lr: float | None = option(
        None, "learning rate of the frozen stage (default: --lr)", "schedule", minimum=0.0, maximum=100.0
    )
