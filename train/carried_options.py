"""Options that hold the text of a user's file, as darknet:FILE.cfg has: a resumed run keeps its own."""

from dataclasses import replace
from typing import Any

from common.errors import CheckpointError, DataError
from model.checkpoint import list_epochs, read_meta
from symbol.registry import family_of
from symbol.symbol_factory import embedded_options
from train.options import TrainOptions


def with_carried(options: TrainOptions) -> TrainOptions:
    """The options with the texts of their files, which the checkpoints of a resumed run have; others as they are.

    A run without a checkpoint, or whose checkpoints are of another network, reads the files.
    """
    given = {name: getattr(options, name) for name in _names(options) if getattr(options, name)}
    stored = _stored(options) if _is_resumed(options) else {}
    own = stored | given
    return replace(options, **{**own, **embedded_options(options.network, own)})


def changed_files(options: TrainOptions) -> list[str]:
    """A line for the file of a resumed run that is no longer the text which the run goes on with."""
    if not (_names(options) and _is_resumed(options)):
        return []
    try:
        now = embedded_options(options.network, {})
    except DataError:  # the file has gone
        return []
    path = options.network.removeprefix(family_of(options.network).prefix)
    changed = any(getattr(options, name) != text for name, text in now.items())
    return [f"{path} has changed; the run goes on with the text that its checkpoints keep"] if changed else []


def _names(options: TrainOptions) -> list[str]:
    family = family_of(options.network)
    return [name for name in family.embedded if name not in family.unused_options(options.network)]


def _is_resumed(options: TrainOptions) -> bool:
    return options.resume not in ("-1", "")


def _stored(options: TrainOptions) -> dict[str, Any]:
    """The texts in the newest checkpoint that can be read; all of a prefix have the same network. {} without one."""
    for epoch in reversed(list_epochs(options.prefix) if _names(options) else []):
        try:
            meta = read_meta(options.prefix, epoch)
        except CheckpointError:  # resuming reports it
            continue
        if meta.network != options.network:
            return {}
        found = {name: meta.options.get(name) for name in _names(options)}
        return {name: text for name, text in found.items() if text and isinstance(text, str)}
    return {}
