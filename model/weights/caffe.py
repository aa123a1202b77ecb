"""Caffe's .caffemodel: VGG16 (full or reduced) and the SSD that Wei Liu's branch trains from it.

A .caffemodel is a protobuf message. Four message types of caffe.proto are read here, directly from the wire format
(https://protobuf.dev/programming-guides/encoding), because that needs no library and every length is checked.

    NetParameter      layers = 2 (V1LayerParameter), layer = 100 (LayerParameter)
    V1LayerParameter  name = 4, blobs = 6          LayerParameter  name = 1, blobs = 7
    BlobProto         num, channels, height, width = 1..4, data = 5, shape = 7 (BlobShape, dim = 1), double_data = 8

Anchors: per cell, PriorBox makes the square of min_size, that of sqrt(min_size * max_size), then ratios 2, 1/2, 3,
1/3; MultiBoxPrior with ratios (1, 2, .5, 3, 1/3) makes the same order. Background is class 0 in both, and both flatten
(y, x, anchor, value). So the heads need another name and no permutation. Caffe's images are BGR; ours are RGB.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import CheckpointError
from model.weights import vgg
from model.weights.vgg import Arrays

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
VARINT_BYTES = 10
MAX_DIMENSIONS = 32  # kMaxBlobAxes
DIM, DATA, SHAPE, DOUBLE_DATA = 1, 5, 7, 8
OLD_SHAPE = (1, 2, 3, 4)  # num, channels, height, width
MAPS = ("conv4_3_norm", "fc7", "conv6_2", "conv7_2", "conv8_2", "conv9_2", "conv10_2")
HEADS = {"mbox_loc": "loc_pred_conv", "mbox_conf": "cls_pred_conv"}
FIRST_EXTRA = 6  # conv6_1 and conv6_2 make feature map 2


class LayerFields(NamedTuple):
    """Field numbers of a layer message."""

    name: int
    blobs: int


# Field of NetParameter -> fields of the message in it.
LAYERS = {2: LayerFields(name=4, blobs=6), 100: LayerFields(name=1, blobs=7)}


def _layer_names() -> dict[str, str]:
    """{layer of VGG_..._SSD_300x300 or 512x512: layer of vgg16_reduced}."""
    names = {name: name for name in (*vgg.CONVOLUTIONS, "fc6", "fc7")}
    for k in range(vgg.FIRST_EXTRA, vgg.LAST_EXTRA + 1):
        number = k - vgg.FIRST_EXTRA + FIRST_EXTRA
        names |= {
            f"conv{number}_1": f"multi_feat_{k}_conv_1x1_conv",
            f"conv{number}_2": f"multi_feat_{k}_conv_3x3_conv",
        }
    for source, base in zip(MAPS, vgg.MAPS, strict=True):
        names |= {f"{source}_{head}": f"{base}_{ours}" for head, ours in HEADS.items()}
    return names


# pycaffe's params['conv1_1'][0] is called conv1_1[0] here.
NAMES = {
    f"{theirs}[{k}]": f"{ours}_{kind}"
    for theirs, ours in _layer_names().items()
    for k, kind in enumerate(("weight", "bias"))
}
NAMES["conv4_3_norm[0]"] = vgg.SCALE


def read(path: str | Path) -> Arrays:
    """{LAYER[k]: k-th blob of the layer}, float32, as Caffe stores them; CheckpointError names an unsound file."""
    try:
        arrays = _net(memoryview(Path(path).read_bytes()))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a sound .caffemodel ({error})") from error
    if not arrays:
        raise CheckpointError(
            f"{path}: holds no weights; give a .caffemodel (one of before 2014 after upgrade_net_proto_binary)"
        )
    return arrays


def rename(arrays: Arrays, network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """Parameters of vgg16_reduced (or legacy_vgg16_ssd_*) from VGG16 or SSD blobs; RGB instead of BGR; no aux.

    Fully connected fc6 and fc7 are subsampled. `options` change nothing. Unknown blobs keep their names;
    CheckpointError for another network and for models that are not VGG16.
    """
    vgg.check_network(network, "Caffe's")
    out = {NAMES.get(name, name): array for name, array in arrays.items()}
    vgg.check_body(out, "Caffe")
    out = {name: array.reshape(-1) if name.endswith("_bias") else array for name, array in out.items()}
    out[vgg.FIRST_WEIGHT] = np.ascontiguousarray(out[vgg.FIRST_WEIGHT][:, ::-1])
    return vgg.to_network(vgg.reduce_classifier(vgg.shape_scale(out)), network), {}


def _net(content: memoryview) -> Arrays:
    arrays: Arrays = {}
    for number, value in _fields(content):
        if number not in LAYERS:
            continue
        for name, blob in _layer(_message(value), LAYERS[number]):
            if name in arrays:
                raise ValueError(f"layer {name!r:.80} appears twice")
            arrays[name] = blob
    return arrays


def _layer(content: memoryview, fields: LayerFields) -> Iterator[tuple[str, np.ndarray]]:
    """(LAYER[k], blob) of one layer."""
    name, blobs = "", []
    for number, value in _fields(content):
        if number == fields.name:
            name = bytes(_message(value)).decode("utf-8")
        elif number == fields.blobs:
            blobs.append(_blob(_message(value)))
    return ((f"{name}[{k}]", blob) for k, blob in enumerate(blobs))


def _blob(content: memoryview) -> np.ndarray:
    """The array of a BlobProto, of its shape (or, before 2014, its four sides), float32."""
    parts: dict[int, list[memoryview]] = {DATA: [], DOUBLE_DATA: []}
    old, shape = dict.fromkeys(OLD_SHAPE, 0), None
    for number, value in _fields(content):
        if number in parts:
            parts[number].append(_message(value))
        elif number == SHAPE:
            shape = _dimensions(_message(value))
        elif number in old:
            old[number] = _number(value)
    data = b"".join(parts[DATA]), b"".join(parts[DOUBLE_DATA])
    values = np.frombuffer(data[1], "<f8").astype(np.float32) if data[1] else np.frombuffer(data[0], "<f4")
    if shape is None:
        shape = tuple(old.values()) if any(old.values()) else (values.size,)
    if len(shape) > MAX_DIMENSIONS or min(shape, default=1) < 1 or math.prod(shape) != values.size:
        raise ValueError(f"a blob of shape {str(shape):.80} has {values.size} values")
    return values.reshape(shape)


def _dimensions(content: memoryview) -> tuple[int, ...]:
    """The sides in a BlobShape, packed or not."""
    sides: list[int] = []
    for number, value in _fields(content):
        if number == DIM and isinstance(value, int):
            sides.append(value)
        elif number == DIM:
            position = 0
            while position < len(_message(value)):
                side, position = _varint(_message(value), position)
                sides.append(side)
    return tuple(sides)


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message or packed values belong")
    return value


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number belongs")
    return value


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a message: an int for a number, a view of the bytes for a length-delimited value.

    Single floats and doubles (which Caffe never writes for weights) are numbers without use here and are skipped.
    """
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, position = _varint(content, position)
            yield number, value
        elif kind == BYTES:
            length, position = _varint(content, position)
            position = _advance(content, position, length)
            yield number, content[position - length : position]
        elif kind in (FIXED64, FIXED32):
            position = _advance(content, position, 8 if kind == FIXED64 else 4)
        else:
            raise ValueError(f"wire type {kind}")


def _advance(content: memoryview, position: int, length: int) -> int:
    if length > len(content) - position:
        raise ValueError("it ends too early or a length is damaged")
    return position + length


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """(the unsigned number at position, the position after it)."""
    value = 0
    for k in range(VARINT_BYTES):
        if position + k >= len(content):
            raise ValueError("it ends inside a number")
        byte = content[position + k]
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return value, position + k + 1
    raise ValueError("a number of more than ten bytes")
