"""Options that do nothing because of another one: told, not refused, as presets may set them."""

from collections.abc import Iterable
from typing import Any

from config.deploy_options import DeployOptions
from config.options import fields_of, flat_values

Groups = Iterable[tuple[tuple[str, ...], str]]
COCO_ALONE = "with --metrics coco, which has its own"
ONE_SIZE = "without --rect-val"


def idle_deploy_options(options: DeployOptions) -> list[str]:
    """A sentence for each option of deploy.py that another one keeps from having an effect."""
    int8 = ("calib_mode", "num_calib", "max_loss")
    return sentences(options, [] if options.dtype == "int8" else [(int8, f"with --dtype {options.dtype}")])


def sentences(options: Any, groups: Groups) -> list[str]:
    """A sentence for each option of the groups that is not at its default."""
    values = flat_values(options)
    given = {name for name, field in fields_of(type(options)).items() if values[name] != field.default}
    return [
        f"--{name.replace('_', '-')} has no effect {reason}"
        for names, reason in groups
        for name in names
        if name in given
    ]
