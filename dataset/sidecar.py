"""The sidecar NAME.json beside NAME.rec: class names, counts, checksum; no later step asks the user for them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.file_set import finish_replacement
from common.files import file_sha256, write_atomically
from common.signed_json import SignedKind
from common.version import __version__
from dataset.labels import MIN_OBJECT_WIDTH
from dataset.recordio import RecordReader
from dataset.transforms import parse_bit_depth

DIGEST_LENGTH = 16
OBJECT_BYTES = 4 * MIN_OBJECT_WIDTH  # of an object in a label, at least


@dataclass(frozen=True)
class Sidecar:
    """What is known of a .rec file; label_width is the number of floats of its widest label, size its bytes.

    image_digests: image_digest of each image, one after the other in the record's order; "" in sidecars without.
    bit_depth: the rule of --bit-depth by which the images became 8 bits; "" = they had 8.
    """

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
    image_digests: str = ""
    bit_depth: str = ""

    def __post_init__(self) -> None:
        """ValueError for counts below 0, for class names that are listed twice or have no count each, and for a rule
        that is none."""
        if self.bit_depth:
            parse_bit_depth(self.bit_depth)
        counts = {"objects_per_class": min(self.objects_per_class, default=0)}
        counts |= {field.name: getattr(self, field.name) for field in fields(self) if field.type is int}
        negative = next((name for name, count in counts.items() if count < 0), None)
        if negative:
            raise ValueError(f"{negative} is negative")
        if self.image_digests and len(self.image_digests) != self.num_images * DIGEST_LENGTH:
            raise ValueError("image_digests has not one digest for each image")
        if len(self.objects_per_class) != len(self.class_names):
            raise ValueError("class_names and objects_per_class differ in length")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names: a name is listed twice")


SIDECAR_FILE = SignedKind(Sidecar, "sidecar", format=2, max_bytes=256 << 20)  # earlier ones had no number


def image_digest(content: bytes) -> str:
    """What tells an image file from others: the first 16 hexadecimal digits of its sha256."""
    return hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]


def same_images(one: Sidecar, other: Sidecar) -> int:
    """How many images of `other` are in `one`, byte for byte; 0 where a sidecar does not say."""
    digests = [split_digests(sidecar.image_digests) for sidecar in (one, other)]
    known = set(digests[0])
    return sum(digest in known for digest in digests[1])


def split_digests(digests: str) -> list[str]:
    """The digests of a sidecar's image_digests, in their order."""
    return [digests[k : k + DIGEST_LENGTH] for k in range(0, len(digests), DIGEST_LENGTH)]


def describe_record(
    rec: Path,
    class_names: tuple[str, ...],
    counts: Sequence[int] | np.ndarray,
    objects_per_class: np.ndarray,
    label_width: int,
    source: str,
    digests: Iterable[str] = (),
    bit_depth: str = "",
) -> Sidecar:
    """The sidecar of a complete .rec, under whatever name; counts: the objects of each record; digests: of the images
    of all; bit_depth: the rule of --bit-depth."""
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
        image_digests="".join(digests),
        bit_depth=bit_depth,
    )


def sidecar_path(rec_path: str | Path) -> Path:
    """NAME.rec -> NAME.json."""
    return Path(rec_path).with_suffix(".json")


def read_sidecar(rec_path: str | Path) -> Sidecar | None:
    """The sidecar of a record, None if there is none; DataError if it is damaged."""
    path = sidecar_path(rec_path)
    finish_replacement(path)
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


def has_sidecar(rec_path: str | Path) -> bool:
    """Whether a record has a sound sidecar; another file of its name is none."""
    try:
        return read_sidecar(rec_path) is not None
    except DataError:
        return False


def verify_sidecar(rec_path: str | Path, sidecar: Sidecar, hash: bool) -> None:
    """Raises DataError unless the record has the sidecar's size, number of images and room for its max_objects and, if
    hash, its sha256."""
    path = Path(rec_path)
    remedy = f"it does not belong to {sidecar_path(path).name}; pack the data set again"
    count = len(RecordReader(path))
    if count != sidecar.num_images:
        raise DataError(f"{path}: {count} records instead of {sidecar.num_images}: {remedy}")
    if path.stat().st_size != sidecar.size:
        raise DataError(f"{path}: {path.stat().st_size} bytes instead of {sidecar.size}: {remedy}")
    if sidecar.max_objects * OBJECT_BYTES > sidecar.size:
        raise DataError(
            f"{sidecar_path(path)}: says that an image has {sidecar.max_objects} objects, more than the "
            f"{sidecar.size} bytes of {path.name} can hold; pack the data set again"
        )
    if hash and file_sha256(path) != sidecar.sha256:
        raise DataError(
            f"{path}: its sha256 is not that of {sidecar_path(path).name}: damaged or changed; pack the data set again"
        )
