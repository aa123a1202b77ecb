"""The .cfg text of a run of darknet:FILE.cfg: that of the file, or of the checkpoints where the run is resumed."""

from dataclasses import replace

from common.errors import CheckpointError, DataError
from config.run import TrainOptions
from model.checkpoint import list_epochs, read_meta
from symbol.darknet_cfg import load_cfg
from symbol.registry import DARKNET_PREFIX
from symbol.symbol_factory import carried_options


def with_cfg(options: TrainOptions) -> TrainOptions:
    """The options with the text of their .cfg, which the checkpoints of a resumed run have; others as they are.

    A run without a checkpoint, or whose checkpoints are of another network, reads the file.
    """
    text = options.darknet_cfg or (_checkpoints_text(options) if _is_resumed(options) else "")
    return replace(options, **{"darknet_cfg": text, **carried_options(options.network, text)})


def changed_cfg(options: TrainOptions) -> list[str]:
    """A line for the .cfg of a resumed run that is no longer the text which the run goes on with."""
    if not _is_resumed(options):
        return []
    path = options.network.removeprefix(DARKNET_PREFIX)
    try:
        is_same = load_cfg(path) == options.darknet_cfg
    except DataError:  # the file has gone
        return []
    return [] if is_same else [f"{path} has changed; the run goes on with the text that its checkpoints keep"]


def _is_resumed(options: TrainOptions) -> bool:
    return options.network.startswith(DARKNET_PREFIX) and options.resume not in ("-1", "")


def _checkpoints_text(options: TrainOptions) -> str:
    """The text in the newest checkpoint that can be read; all of a prefix have the same network. '' without one."""
    for epoch in reversed(list_epochs(options.prefix)):
        try:
            meta = read_meta(options.prefix, epoch)
        except CheckpointError:  # resuming reports it
            continue
        text = meta.options.get("darknet_cfg")
        return text if meta.network == options.network and isinstance(text, str) else ""
    return ""
