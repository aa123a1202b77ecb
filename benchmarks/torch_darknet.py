"""Networks of Darknet sections in PyTorch, with the YOLOv3-SPP loss on ready targets, for benchmarks.torch_peers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

LEAKY_SLOPE = 0.1
POSITIVES = 30  # cells of each level and image that have an object
BOX_GAIN, OBJECT_GAIN, CLASS_GAIN = 3.54, 64.3, 37.4
LARGEST_SIDE = 1e3  # of a predicted box relative to its anchor


class Darknet(nn.Module):
    """A network as its sections say; the outputs are those before each yolo section, (B, anchors, h, w, 5 + C)."""

    def __init__(self, sections: Sequence[Mapping[str, Any]]) -> None:
        """sections: type and keys as in a .cfg, without [net]; lists of layers and anchors as lists."""
        super().__init__()
        self.sections = sections
        channels: list[int] = []
        layers: list[nn.Module] = []
        previous = 3
        for number, section in enumerate(sections):
            layer, previous = _layer(section, previous, channels, number)
            layers.append(layer)
            channels.append(previous)
        self.layers = nn.ModuleList(layers)

    def forward(self, data: Any) -> list[Any]:
        """Raw predictions of each level."""
        kept: list[Any] = []
        outputs = []
        for number, (section, layer) in enumerate(zip(self.sections, self.layers, strict=True)):
            if section["type"] == "yolo":
                batch, _, height, width = data.shape
                raw = data.view(batch, len(section["mask"]), -1, height, width)
                outputs.append(raw.permute(0, 1, 3, 4, 2).contiguous())  # (B, anchors, h, w, 5 + C)
            elif section["type"] == "route":
                data = torch.cat([kept[_place(k, number)] for k in section["layers"]], 1)
            elif section["type"] == "shortcut":
                data = data + kept[_place(section["from_"], number)]
            else:
                data = layer(data)
            kept.append(data)
        return outputs


def _place(reference: int, number: int) -> int:
    return number + reference if reference < 0 else reference


def _layer(section: Mapping[str, Any], inputs: int, channels: Sequence[int], number: int) -> tuple[nn.Module, int]:
    """The module of a section and its channels."""
    kind = section["type"]
    if kind == "convolutional":
        return _convolution(section, inputs), section["filters"]
    if kind == "maxpool":
        return nn.MaxPool2d(section["size"], section["stride"], (section["size"] - 1) // 2), inputs
    if kind == "upsample":
        return nn.Upsample(scale_factor=section["stride"]), inputs
    if kind == "route":
        return nn.Identity(), sum(channels[_place(k, number)] for k in section["layers"])
    return nn.Identity(), inputs


def _convolution(section: Mapping[str, Any], inputs: int) -> nn.Module:
    normalised = bool(section["batch_normalize"])
    layers: list[nn.Module] = [
        nn.Conv2d(
            inputs, section["filters"], section["size"], section["stride"], section["size"] // 2, bias=not normalised
        )
    ]
    if normalised:
        layers.append(nn.BatchNorm2d(section["filters"]))
    if section["activation"] == "leaky":
        layers.append(nn.LeakyReLU(LEAKY_SLOPE, inplace=True))
    return nn.Sequential(*layers)


def make_targets(predictions: Sequence[Any], sections: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Random targets of each level: indices (image, anchor, y, x), boxes, anchors in cells, one-hot classes."""
    yolo = [section for section in sections if section["type"] == "yolo"]
    targets = []
    for raw, section in zip(predictions, yolo, strict=True):
        count = POSITIVES * len(raw)
        indices = tuple(torch.randint(0, side, (count,)) for side in raw.shape[:4])
        classes = F.one_hot(torch.randint(0, raw.shape[-1] - 5, (count,)), raw.shape[-1] - 5).float()
        anchors = torch.tensor([section["anchors"][k] for k in section["mask"]])[indices[1]] / 32
        boxes = torch.cat([torch.rand(count, 2), anchors * torch.rand(count, 2).add(0.5)], 1)
        targets.append((indices, boxes, anchors, classes))
    return targets


def yolo_loss(predictions: Sequence[Any], targets: Sequence[tuple[Any, ...]]) -> Any:
    """GIoU, objectness and class losses with the gains of the YOLOv3-SPP trainer."""
    loss = torch.zeros(())
    for raw, (indices, boxes, anchors, classes) in zip(predictions, targets, strict=True):
        chosen = raw[indices]
        sides = chosen[:, 2:4].exp().clamp(max=LARGEST_SIDE) * anchors
        overlap = generalised_iou(torch.cat([chosen[:, :2].sigmoid(), sides], 1), boxes)
        objectness = torch.zeros_like(raw[..., 4])
        objectness[indices] = overlap.detach().clamp(0).to(objectness.dtype)
        loss = loss + BOX_GAIN * (1 - overlap).mean()
        loss = loss + OBJECT_GAIN * F.binary_cross_entropy_with_logits(raw[..., 4], objectness)
        if classes.shape[1] > 1:
            loss = loss + CLASS_GAIN * F.binary_cross_entropy_with_logits(chosen[:, 5:], classes)
    return loss


def generalised_iou(first: Any, second: Any) -> Any:
    """GIoU of pairs of boxes (n, 4) as centre, width, height."""
    low = [box[:, :2] - box[:, 2:] / 2 for box in (first, second)]
    high = [box[:, :2] + box[:, 2:] / 2 for box in (first, second)]
    inner = (torch.minimum(*high) - torch.maximum(*low)).clamp(0).prod(1)
    union = first[:, 2:].prod(1) + second[:, 2:].prod(1) - inner
    hull = (torch.maximum(*high) - torch.minimum(*low)).prod(1)
    return inner / union - (hull - union) / hull
