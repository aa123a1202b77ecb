"""Caffe's .caffemodel: VGG16 (full or reduced) and the SSD that Wei Liu's branch trains from it.

A .caffemodel is a protobuf message. Four message types of caffe.proto are read here, directly from the wire format
(common/protobuf.py), because that needs no library and every length is checked.

    NetParameter      layers = 2 (V1LayerParameter), layer = 100 (LayerParameter)
    V1LayerParameter  name = 4, blobs = 6          LayerParameter  name = 1, blobs = 7
    PriorBoxParameter min_size, max_size, aspect_ratio, flip, clip = 1..5, step = 10; of a LayerParameter: field 203
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
from common.files import refuse_page
from common.protobuf import VARINT, fields, varints
from model.weights import vgg
from model.weights.vgg import Arrays
from symbol.detector.ssd_rows import COCO_300, COCO_512, ROWS, VOC_300, VOC_512

MAX_DIMENSIONS = 32  # kMaxBlobAxes
DIM, DATA, SHAPE, DOUBLE_DATA = 1, 5, 7, 8
OLD_SHAPE = (1, 2, 3, 4)  # num, channels, height, width
MAPS = ("conv4_3_norm", "fc7", "conv6_2", "conv7_2", "conv8_2", "conv9_2", "conv10_2")
HEADS = {"mbox_loc": "loc_pred_conv", "mbox_conf": "cls_pred_conv"}
PRIOR = "[priors]"  # after the name of a PriorBox: min_size, max_size, clip, step, then the ratios of a cell
CLIP_AT, STEP_AT, RATIOS_AT = 2, 3, 4
PRIOR_BOX = 203
COCO_CLASSES = 81  # with background
MIN_SIZE, MAX_SIZE, ASPECT_RATIO, FLIP, CLIP, STEP = 1, 2, 3, 4, 5, 10
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
    refuse_page(path)
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


def describe(arrays: Mapping[str, np.ndarray]) -> vgg.SSDSettings | None:
    """What a whole SSD on VGG16 needs to detect here as in Caffe; None for other weights.

    Its priors are those that the file states, else those of Caffe's examples for its number of classes.
    """
    biases = [arrays.get(f"{name}_mbox_conf[1]") for name in MAPS]
    maps = sum(bias is not None for bias in biases)
    if maps not in vgg.SSD_NETWORKS or biases[0] is None:
        return None
    network, side = vgg.SSD_NETWORKS[maps]
    row = next(row for _, row in ROWS[network] if row.steps_for == side)
    stated = [arrays.get(f"{name}_mbox_priorbox{PRIOR}") for name in MAPS[:maps]]
    if not all(prior is not None for prior in stated):
        is_coco = biases[0].size // (len(row.ratios[0]) + 1) == COCO_CLASSES
        voc, coco = (VOC_300, COCO_300) if network == vgg.NETWORK else (VOC_512, COCO_512)
        example = "ssd_coco.py" if is_coco else "ssd_pascal.py"
        note = f"the file states no priors that are understood; those of Caffe's {example} are taken"
        return vgg.SSDSettings(network, vgg.anchor_options(row, coco if is_coco else voc, row.ratios), {}, side, note)
    priors = [prior for prior in stated if prior is not None]
    vgg.check_steps(row, network, [float(prior[STEP_AT]) for prior in priors], "Caffe")
    if any(prior[CLIP_AT] for prior in priors):
        raise CheckpointError(
            "the priors of the Caffe SSD are clipped to the image, which no network here has: not read"
        )
    sizes = [(low / side, math.sqrt(low * high) / side) for low, high in (prior[:CLIP_AT] for prior in priors)]
    options = vgg.anchor_options(row, sizes, [prior[RATIOS_AT:].tolist() for prior in priors])
    return vgg.SSDSettings(network, options, {}, side)


def rename(arrays: Arrays, network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """Parameters of vgg16_reduced (or legacy_vgg16_ssd_*) from VGG16 or SSD blobs; RGB instead of BGR; no aux.

    Fully connected fc6 and fc7 are subsampled. `options` change nothing. Unknown blobs keep their names;
    CheckpointError for another network and for models that are not VGG16.
    """
    depthwise = next((name for name in arrays if "/dw" in name), None)
    if depthwise:
        raise CheckpointError(
            f"{depthwise:.80} is of a MobileNet of Caffe, as that of MobileNet-SSD, which is not read: its layers are "
            "those of no network here; of Caffe, VGG16 and SSDs on it are read"
        )
    vgg.check_network(network, "Caffe's")
    out = {NAMES.get(name, name): array for name, array in arrays.items() if not name.endswith(PRIOR)}
    vgg.check_body(out, "Caffe")
    out = {name: array.reshape(-1) if name.endswith("_bias") else array for name, array in out.items()}
    out[vgg.FIRST_WEIGHT] = np.ascontiguousarray(out[vgg.FIRST_WEIGHT][:, ::-1])
    return vgg.to_network(vgg.reduce_classifier(vgg.shape_scale(out)), network), {}


def _prior(content: memoryview) -> np.ndarray | None:
    """The numbers of a PriorBoxParameter as PRIOR has them; None unless it has one min_size, max_size and step."""
    numbers: dict[int, list[float]] = {MIN_SIZE: [], MAX_SIZE: [], ASPECT_RATIO: [], STEP: []}
    flags = {FLIP: 1, CLIP: 0}
    for field in fields(content):
        if field.number in numbers:
            numbers[field.number] += field.floats()
        elif field.number in flags:
            flags[field.number] = field.integer()
    if not len(numbers[MIN_SIZE]) == len(numbers[MAX_SIZE]) == len(numbers[STEP]) == 1:
        return None
    ratios = [1.0]
    for ratio in numbers[ASPECT_RATIO]:
        if ratio > 0 and ratio != 1:
            ratios += [ratio, 1 / ratio] if flags[FLIP] else [ratio]
    return np.array(numbers[MIN_SIZE] + numbers[MAX_SIZE] + [float(flags[CLIP])] + numbers[STEP] + ratios)


def _net(content: memoryview) -> Arrays:
    arrays: Arrays = {}
    for field in fields(content):
        if field.number not in LAYERS:
            continue
        for name, blob in _layer(field.message(), LAYERS[field.number]):
            if name in arrays:
                raise ValueError(f"layer {name!r:.80} appears twice")
            arrays[name] = blob
    return arrays


def _layer(content: memoryview, numbers: LayerFields) -> Iterator[tuple[str, np.ndarray]]:
    """(LAYER[k], blob) of one layer, or its priors."""
    name, blobs, priors = "", [], []
    for field in fields(content):
        if field.number == numbers.name:
            name = bytes(field.message()).decode("utf-8")
        elif field.number == numbers.blobs:
            blobs.append(_blob(field.message()))
        elif field.number == PRIOR_BOX:
            priors = [_prior(field.message())]
    yield from ((f"{name}{PRIOR}", prior) for prior in priors if prior is not None)
    yield from ((f"{name}[{k}]", blob) for k, blob in enumerate(blobs))


def _blob(content: memoryview) -> np.ndarray:
    """The array of a BlobProto, of its shape (or, before 2014, its four sides), float32."""
    parts: dict[int, list[memoryview]] = {DATA: [], DOUBLE_DATA: []}
    old, shape = dict.fromkeys(OLD_SHAPE, 0), None
    for field in fields(content):
        if field.number in parts:
            parts[field.number].append(field.message())
        elif field.number == SHAPE:
            shape = _dimensions(field.message())
        elif field.number in old:
            old[field.number] = field.integer()
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
    for field in fields(content):
        if field.number == DIM:
            sides += [field.integer()] if field.kind == VARINT else varints(field.message())
    return tuple(sides)
