"""A record file whose labels come from a list: what the classic train_list and val_list do."""

from pathlib import Path

from dataset.image_list import read_labels
from dataset.recordio import RecordReader, pack, unpack


class RelabelledReader(RecordReader):
    """A RecordReader whose payloads carry the labels that a list gives the ids in the records' headers.

    Attributes:
        max_objects: the largest number of objects of a record.
    """

    def __init__(self, path: str | Path, path_imglist: str | Path, num_classes: int | None) -> None:
        """Reads and checks the labels of all records; lines of other records do not matter.

        DataError names a record without a line, or a line whose label cannot be trained on.
        """
        super().__init__(path)
        self._labels = read_labels(path_imglist, self.image_ids(), num_classes)
        self.max_objects = self._labels.max_objects

    def read(self, position: int) -> bytes:
        """The payload of the position-th record with the list's label."""
        record = unpack(super().read(position), f"{self.path}, record {self.keys[position]}")
        return pack(self._labels.of(position), record.image, record.index)
