"""Weights from a formula, and the files of other projects written byte by byte."""

import json
import struct
import zlib

import numpy as np

from machine.runtime import mx
from model.params_file import LIST_MAGIC, V1_MAGIC


def formula(name, shape):
    """Values that depend on the name and on every index; small, and positive for variances and gammas."""
    steps = zlib.crc32(name.encode()) % 997 + np.arange(np.prod(shape, dtype=np.int64))
    values = np.sin(steps * 0.37).astype(np.float32)
    positive = name.endswith(("gamma", "_var", "running_var"))
    return (1 + 0.5 * values if positive else 0.1 * values).reshape(shape)


def formulas(shapes):
    return {name: formula(name, shape) for name, shape in shapes.items()}


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def sized(field, content):
    """A length-delimited protobuf field."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def counted(field, number):
    """A varint protobuf field."""
    return varint(field << 3) + varint(number)


def blob(array, old=False, double=False):
    """A BlobProto: with the four sides of before 2014, or with a BlobShape."""
    if old:
        sides = (1,) * (4 - array.ndim) + array.shape
        shape = b"".join(counted(number, side) for number, side in enumerate(sides, start=1))
    else:
        shape = sized(7, sized(1, b"".join(varint(side) for side in array.shape)))
    return shape + (sized(8, array.astype("<f8").tobytes()) if double else sized(5, array.astype("<f4").tobytes()))


def caffemodel(layers, old=False, double=False):
    """A NetParameter of {layer: [arrays]}; old = V1LayerParameter."""
    field, name_field, blob_field, type_field = (
        (2, 4, 6, counted(5, 4)) if old else (100, 1, 7, sized(2, b"Convolution"))
    )
    out = sized(1, b"VGG_formula")
    for name, arrays in layers.items():
        blobs = b"".join(sized(blob_field, blob(array, old, double)) for array in arrays)
        out += sized(field, sized(name_field, name.encode()) + type_field + blobs)
    return out


def params_v0(arrays):
    """A .params file as MXNet 0.8 wrote it: an array begins with its number of dimensions, sides are 32 bits."""
    return _params(arrays, lambda shape: struct.pack(f"<I{len(shape)}I", len(shape), *shape))


def params_v1(arrays):
    """A .params file as MXNet 0.12 wrote it: a magic number, sides of 64 bits, no storage type."""
    return _params(arrays, lambda shape: struct.pack(f"<Ii{len(shape)}q", V1_MAGIC, len(shape), *shape))


def _params(arrays, head):
    out = struct.pack("<QQQ", LIST_MAGIC, 0, len(arrays))
    for array in arrays.values():
        out += head(array.shape) + struct.pack("<iii", 1, 0, 0) + array.astype("<f4").tobytes()
    out += struct.pack("<Q", len(arrays))
    return out + b"".join(struct.pack("<Q", len(name)) + name.encode() for name in arrays)


def old_json(symbol, key):
    """A symbol's JSON with the parameters of operators under `param`, `attr` or `attrs`; 0.8 had no `_contrib_`."""
    graph = json.loads(symbol.tojson())
    for node in graph["nodes"]:
        if "attrs" in node:
            node[key] = node.pop("attrs")
        if key == "param":
            node["op"] = node["op"].removeprefix("_contrib_")
            node["backward_source_id"] = -1
    return json.dumps(graph)


def outputs(symbol, arg, aux, data):
    """The output of a symbol for numpy arrays; a list of several outputs."""
    arrays = {name: mx.nd.array(array) for name, array in {**arg, "data": data}.items()}
    arrays = {name: arrays[name] for name in symbol.list_arguments()}
    states = {name: mx.nd.array(aux[name]) for name in symbol.list_auxiliary_states()}
    found = [out.asnumpy() for out in symbol.bind(mx.cpu(), arrays, aux_states=states).forward(is_train=False)]
    return found if len(found) > 1 else found[0]


def body(symbol, layer):
    """The part of a symbol up to a layer."""
    return symbol.get_internals()[f"{layer}_output"]
