"""Class names as --class-names gives them: a list, a text file, or the sidecar of a record."""

from pathlib import Path

from common.errors import OptionError
from dataset.sidecar import read_sidecar

_MAX_NAMES_BYTES = 1 << 20


def read_class_names(given: tuple[str, ...]) -> tuple[str, ...] | None:
    """The names on the command line, in a text file, or in a sidecar."""
    if not given:
        return None
    names = given
    path = Path(given[0])
    if len(given) == 1 and path.suffix == ".json":
        sidecar = read_sidecar(path)
        if sidecar is None:
            raise OptionError(f"--class-names {path}: no such file")
        names = sidecar.class_names
    elif len(given) == 1 and path.is_file():
        names = _names_in(path)
    repeated = [name for k, name in enumerate(names) if name in names[:k]]
    if repeated or not names:
        raise OptionError(f"--class-names: {f'{repeated[0]!r} is given twice' if repeated else 'no names found'}")
    return names


def _names_in(path: Path) -> tuple[str, ...]:
    try:
        if path.stat().st_size > _MAX_NAMES_BYTES:
            raise OptionError(f"--class-names {path}: too large for a list of names")
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--class-names {path}: not readable as a list of names ({error})") from error
    return tuple(line.strip() for line in lines if line.strip())
