"""Options that do nothing because of another one: told, not refused, as presets may set them."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from config.deploy_options import DeployOptions
from config.run import EvaluateOptions

Groups = Iterable[tuple[tuple[str, ...], str]]
COCO_ALONE = "with --metrics coco, which has its own"
ONE_SIZE = "without --rect-val"


def idle_deploy_options(options: DeployOptions) -> list[str]:
    """A sentence for each option of deploy.py that another one keeps from having an effect."""
    int8 = ("calib_mode", "num_calib", "max_loss")
    return sentences(options, [] if options.dtype == "int8" else [(int8, f"with --dtype {options.dtype}")])


def idle_evaluate_options(options: EvaluateOptions, kinds: tuple[str, ...], rect: int) -> list[str]:
    """The same for evaluate.py; kinds: the metrics, rect: what sides of inputs are multiples of, 0 = one size."""
    groups: list[tuple[tuple[str, ...], str]] = []
    if kinds == ("coco",):
        groups.append((("overlap",), COCO_ALONE))
    if not rect:
        groups.append((("rect_multiple",), ONE_SIZE))
    return sentences(options, groups)


def sentences(options: Any, groups: Groups) -> list[str]:
    """A sentence for each option of the groups that is not at its default."""
    defaults = {field.name: field.default for field in fields(options)}
    given = {name for name, default in defaults.items() if getattr(options, name) != default}
    return [
        f"--{name.replace('_', '-')} has no effect {reason}"
        for names, reason in groups
        for name in names
        if name in given
    ]
