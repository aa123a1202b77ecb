"""Protobuf's wire format: the fields of a message, every length checked against its bytes.

The encoding: https://protobuf.dev/programming-guides/encoding. What a field's number means, and which fields are
messages themselves, the readers of Caffe's and ONNX's files know; nothing here recurses.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}
_VARINT_BYTES = 10
_MAX_KEY = (1 << 32) - 1  # readers in C++ drop the bits above these: they would see another field than this one


class Field(NamedTuple):
    """A field of a message: its number, its wire type and its bytes (of a varint, those of the number)."""

    number: int
    kind: int
    content: memoryview

    def integer(self) -> int:
        """The unsigned number of a varint; ValueError for another field."""
        if self.kind != VARINT:
            raise ValueError("bytes where a number belongs")
        return _varint(self.content, 0)[0]

    def floats(self) -> list[float]:
        """Numbers of 32 bits, one or packed; ValueError for another field."""
        if self.kind not in (FIXED32, BYTES) or len(self.content) % _FIXED[FIXED32]:
            raise ValueError("something else where numbers of 32 bits belong")
        return [number for (number,) in struct.iter_unpack("<f", self.content)]

    def message(self) -> memoryview:
        """The bytes of a message, a text or packed values; ValueError for a number."""
        if self.kind != BYTES:
            raise ValueError("a number where a message or packed values belong")
        return self.content


def fields(content: memoryview) -> Iterator[Field]:
    """The fields of a message in their order; ValueError for bytes that are none."""
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        number, kind = key >> 3, key & 7
        if not number or key > _MAX_KEY:
            raise ValueError(f"no protobuf message: field number {number}")
        if kind == BYTES:
            length, position = _varint(content, position)
        elif kind == VARINT:
            length = _varint(content, position)[1] - position
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise ValueError(f"no protobuf message: wire type {kind}")
        if length > len(content) - position:
            raise ValueError("it is cut off, or a length is damaged")
        yield Field(number, kind, content[position : position + length])
        position += length


def varints(content: memoryview) -> Iterator[int]:
    """Unsigned numbers, packed one after the other; ValueError where one is cut off."""
    position = 0
    while position < len(content):
        number, position = _varint(content, position)
        yield number


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """(the unsigned number at a position, the position after it)."""
    value = 0
    for k in range(_VARINT_BYTES):
        if position + k >= len(content):
            raise ValueError("it is cut off inside a number")
        byte = content[position + k]
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return value, position + k + 1
    raise ValueError("no protobuf message: a number of more than ten bytes")
