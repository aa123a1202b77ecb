"""Looks through the bytes of an ONNX file, without the package onnx, for numbers that it takes from other files.

A runtime would read whatever file a model names. The encoding: https://protobuf.dev/programming-guides/encoding/; the
numbers of the fields: onnx.proto.
"""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}
# Message -> field number -> message in it; what leads to tensors.
MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
_MAX_VARINT = 10  # bytes
_MAX_KEY = (1 << 32) - 1  # readers in C++ drop the bits above these: they would see another field than this one


def check_self_contained(content: bytes) -> None:
    """ValueError for an ONNX file that is no protobuf message, or whose tensors lie in other files."""
    view = memoryview(content)
    waiting = [("model", 0, len(view))]
    while waiting:
        message, start, end = waiting.pop()
        for number, kind, begin, stop in _fields(view, start, end):
            inner = MESSAGES[message].get(number)
            if inner and kind == BYTES:
                waiting.append((inner, begin, stop))
            elif message == "tensor" and (
                number == _EXTERNAL_DATA or (number == _DATA_LOCATION and any(view[begin:stop]))
            ):
                raise ValueError("it takes numbers from other files")


def _fields(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, begin and end of the content of each field of a message; ValueError for what is none."""
    while start < end:
        key, start = _varint(view, start, end)
        number, kind = key >> 3, key & 7
        if not number or key > _MAX_KEY:
            raise ValueError(f"no protobuf message: field number {number}")
        if kind == BYTES:
            length, start = _varint(view, start, end)
        elif kind == VARINT:
            length = _varint(view, start, end)[1] - start
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise ValueError(f"no protobuf message: wire type {kind}")
        if start + length > end:
            raise ValueError("cut off")
        yield number, kind, start, start + length
        start += length


def _varint(view: memoryview, start: int, end: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    value = 0
    for count in range(min(_MAX_VARINT, end - start)):
        byte = view[start + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, start + count + 1
    raise ValueError("cut off")
