"""System libraries that the Python wheels expect: which are missing, and which Debian package brings them."""

import ctypes
import re

DEBIAN_PACKAGES = {
    "libGL.so.1": "libgl1",  # opencv-python
    "libgthread-2.0.so.0": "libglib2.0-0",  # opencv-python
    "libglib-2.0.so.0": "libglib2.0-0",  # opencv-python
    "libgomp.so.1": "libgomp1",  # mxnet
    "libquadmath.so.0": "libquadmath0",  # mxnet, through its own libgfortran.so.3
}


def missing_packages() -> list[str]:
    """Debian packages of those libraries that the loader does not find, sorted, each once."""
    return sorted({package for library, package in DEBIAN_PACKAGES.items() if not _loads(library)})


def named_library(error: BaseException) -> str | None:
    """The library that the loader's message names ("libGL.so.1: cannot open shared object file"), or None."""
    found = re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", str(error))
    return found.group(1) if found else None


def remedy(library: str) -> str:
    """What to do about a missing library, as the end of a sentence; names all missing packages at once."""
    if library not in DEBIAN_PACKAGES:
        return f"install the package that contains {library}"
    return f"apt-get install {' '.join(missing_packages() or [DEBIAN_PACKAGES[library]])}"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
