"""The sidecar NAME.json beside NAME.rec: class names, counts, checksum; no later step asks the user for them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.files import file_sha256, write_atomically
from common.signed_json import SignedKind
from common.version import __version__
from dataset.recordio import RecordReader


@dataclass(frozen=True)
class Sidecar:
    """What is known of a .rec file; label_width is the number of floats of its widest label, size its bytes."""

    class_names: tuple[str, ...]
    num_images: int
    num_objects: int
    max_objects: int
    objects_per_class: tuple[int, ...]
    label_width: int
    source: str
    sha256: str
    size: int
    tool_version: str

    def __post_init__(self) -> None:
        """ValueError for counts below 0, and for class names that are listed twice or have no count each."""
        counts = {"objects_per_class": min(self.objects_per_class, default=0)}
        counts |= {field.name: getattr(self, field.name) for field in fields(self) if field.type is int}
        negative = next((name for name, count in counts.items() if count < 0), None)
        if negative:
            raise ValueError(f"{negative} is negative")
        if len(self.objects_per_class) != len(self.class_names):
            raise ValueError("class_names and objects_per_class differ in length")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names: a name is listed twice")


SIDECAR_FILE = SignedKind(Sidecar, "sidecar", format=2)  # earlier ones had no number


def describe_record(
    rec: Path,
    class_names: tuple[str, ...],
    counts: Sequence[int] | np.ndarray,
    objects_per_class: np.ndarray,
    label_width: int,
    source: str,
) -> Sidecar:
    """The sidecar of a complete .rec, under whatever name; counts: the objects of each record."""
    return Sidecar(
        class_names=class_names,
        num_images=len(counts),
        num_objects=int(sum(counts)),
        max_objects=int(max(counts)),
        objects_per_class=tuple(objects_per_class.tolist()),
        label_width=label_width,
        source=source,
        sha256=file_sha256(rec),
        size=rec.stat().st_size,
        tool_version=__version__,
    )


def sidecar_path(rec_path: str | Path) -> Path:
    """NAME.rec -> NAME.json."""
    return Path(rec_path).with_suffix(".json")


def read_sidecar(rec_path: str | Path) -> Sidecar | None:
    """The sidecar of a record, None if there is none; DataError if it is damaged."""
    path = sidecar_path(rec_path)
    if not path.exists():
        return None
    try:
        return SIDECAR_FILE.read(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a sidecar of a record ({error}); pack the data set again") from error


def write_sidecar(rec_path: str | Path, sidecar: Sidecar) -> None:
    """Writes the sidecar of a record atomically."""
    write_atomically(sidecar_path(rec_path), sidecar_bytes(sidecar))


def sidecar_bytes(sidecar: Sidecar) -> bytes:
    """A sidecar as its file has it."""
    return SIDECAR_FILE.to_json(sidecar).encode("utf-8")


def drop_sidecar(rec_path: str | Path) -> bool:
    """Removes the sidecar of a record that has been replaced by one without; whether there was any. Another file of its
    name stays."""
    try:
        if read_sidecar(rec_path) is None:
            return False
    except DataError:
        return False
    sidecar_path(rec_path).unlink()
    return True


def verify_sidecar(rec_path: str | Path, sidecar: Sidecar, hash: bool) -> None:
    """Raises DataError unless the record has the sidecar's size and number of images and, if hash, its sha256."""
    path = Path(rec_path)
    remedy = f"it does not belong to {sidecar_path(path).name}; pack the data set again"
    count = len(RecordReader(path))
    if count != sidecar.num_images:
        raise DataError(f"{path}: {count} records instead of {sidecar.num_images}: {remedy}")
    if path.stat().st_size != sidecar.size:
        raise DataError(f"{path}: {path.stat().st_size} bytes instead of {sidecar.size}: {remedy}")
    if hash and file_sha256(path) != sidecar.sha256:
        raise DataError(
            f"{path}: its sha256 is not that of {sidecar_path(path).name}: damaged or changed; pack the data set again"
        )
