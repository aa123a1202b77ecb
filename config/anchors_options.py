"""Options of tools/anchors.py."""

from dataclasses import dataclass

from config.augment_options import RESIZE_MODES
from config.options import option


@dataclass(frozen=True)
class AnchorsOptions:
    """Which objects to fit anchors to, for which network, and what to write."""

    train_path: str = option("data/train.rec", "record whose objects the anchors are for", "data")
    preset: str = option(
        "", "preset to copy, a name or file: its network, input and anchors are those before; '' = defaults", "network"
    )
    network: str | None = option(None, "network (default: the preset's)", "network")
    data_shape: tuple[int, ...] | None = option(
        None, "input side, or height,width (default: the preset's)", "network", minimum=32, maximum=8192
    )
    resize_mode: str | None = option(
        None,
        "how images fill the input: force or letterbox (default: the preset's)",
        "network",
        choices=RESIZE_MODES,
    )
    threshold: float | None = option(
        None,
        "IoU above which an anchor counts as recalling an object (default: the one from which the network learns it)",
        "fit",
        minimum=0.0,
        maximum=1.0,
    )
    generations: int = option(1000, "mutations that are tried", "fit", minimum=0, maximum=1_000_000)
    max_objects: int = option(
        20_000, "objects to fit to, drawn at random if there are more; the figures are of all", "fit", minimum=1
    )
    seed: int = option(233, "another seed, other starts and mutations", "fit", minimum=0)
    output: str = option("", "preset (YAML) to write, with the new anchors", "output")
    picture: str = option("", "picture (PNG) to write: the objects' widths and heights with the anchors", "output")
