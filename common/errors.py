"""The errors that a user can cause; machine/command.py reports them: one sentence, exit status 2, no traceback."""


class UserError(Exception):
    """A mistake that the user can mend; its text names the file, record or option and the remedy."""


class OptionError(UserError):
    """A wrong option, or options that do not fit together."""


class DataError(UserError):
    """A damaged or unsuitable file of the user's: annotation, image, list, record, sidecar."""


class CheckpointError(UserError):
    """A missing, damaged or unsuitable checkpoint or model folder."""


class InstallError(UserError):
    """A library that is not installed, or that cannot run on this machine."""


class TrainingError(UserError):
    """Training cannot go on, for instance because the loss is no longer finite."""


class OutOfMemoryError(UserError):
    """What was asked for does not fit into the memory of the machine or its GPU."""
