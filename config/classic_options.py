"""What the classic commands must be told about a trained model; docs/classic.md lists their flags."""

from dataclasses import dataclass

from config.options import CLASSIC, DATA_SHAPE_FORM, option


@dataclass(frozen=True)
class ExpectedModel:
    """What the classic commands must be told about a trained model; ours read it, and check what is given."""

    network: str = option("", "network that the model must have", CLASSIC)
    num_class: int | None = option(
        None, "number of classes that the model must have", CLASSIC, minimum=1, aliases=("num_classes",)
    )
    class_names: tuple[str, ...] = option((), "classes that the model must have", CLASSIC)
    data_shape: tuple[int, ...] | None = option(
        None, "input side, or height,width, that the model must have", CLASSIC, minimum=1, form=DATA_SHAPE_FORM
    )
    mean_r: float | None = option(None, "mean of red that the model must have", CLASSIC)
    mean_g: float | None = option(None, "mean of green that the model must have", CLASSIC)
    mean_b: float | None = option(None, "mean of blue that the model must have", CLASSIC)
