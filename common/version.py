"""Versions of this project and of the libraries that decide its results."""

import platform
from importlib import metadata

__version__ = "0.1.0"

_LIBRARIES = ("mxnet", "mxnet-cu112", "numpy", "opencv-python", "opencv-python-headless", "gluoncv")


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, read without importing it; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """{name: version} of this project ("detector"), Python and those of the libraries that are installed."""
    found = {name: version for name in _LIBRARIES if (version := installed_version(name))}
    return {"detector": __version__, "python": platform.python_version(), **found}
