"""The SSDs and YOLOs of this project in PyTorch, to compare the speed of a training step.

Run by benchmarks.train_step in a process of its own (two OpenMP run-times in one process disturb each other): each line
`VARIANT STEPS` on standard input answers with the seconds that the steps took; the first line of output has the number
of parameters and the version.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.torch_darknet import Darknet, make_targets, yolo_loss

VGG_STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
MOBILENET_BLOCKS = (
    ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)) + ((512, 1),) * 5 + ((1024, 2), (1024, 1))
)
LEARNING_RATE = 1e-5
POSITIVES = 0.01  # of the anchors
Variant = Callable[[int], float]


def conv_relu(inputs: int, outputs: int, kernel: int, **options: int) -> list[nn.Module]:
    """Convolution that keeps the size at stride 1 unless padding is given, and ReLU."""
    options = {"padding": options.get("dilation", 1) * (kernel // 2)} | options
    return [nn.Conv2d(inputs, outputs, kernel, **options), nn.ReLU(inplace=True)]


def conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def vgg16_reduced(width: float) -> tuple[list[nn.Module], list[int]]:
    """Segments of the backbone up to relu4_3 and relu7, and their channels; width has no meaning here."""
    segments: list[list[nn.Module]] = [[], []]
    channels = 3
    for stage, (repeats, filters) in enumerate(VGG_STAGES, start=1):
        segment = segments[stage == len(VGG_STAGES)]
        for _ in range(repeats):
            segment += conv_relu(channels, filters, 3)
            channels = filters
        if stage < 4:
            segment.append(nn.MaxPool2d(2, 2, ceil_mode=stage == 3))
    segments[1].insert(0, nn.MaxPool2d(2, 2))
    segments[1] += [nn.MaxPool2d(3, 1, 1), *conv_relu(512, 1024, 3, dilation=6), *conv_relu(1024, 1024, 1)]
    return [nn.Sequential(*segment) for segment in segments], [512, 1024]


def mobilenet(width: float) -> tuple[list[nn.Module], list[int]]:
    """Segments of the backbone up to conv_12 and conv_14, and their channels."""

    def scaled(channels: int) -> int:
        return max(8, round(channels * width / 8) * 8)

    channels = scaled(32)
    layers = conv_bn_relu(3, channels, 3, stride=2)
    segments, taps = [], []
    for number, (filters, stride) in enumerate(MOBILENET_BLOCKS, start=2):
        layers += conv_bn_relu(channels, channels, 3, stride, groups=channels)
        layers += conv_bn_relu(channels, scaled(filters), 1)
        channels = scaled(filters)
        if number in (12, 14):
            segments.append(nn.Sequential(*layers))
            taps.append(channels)
            layers = []
    return segments, taps


BACKBONES = {"vgg16_reduced": vgg16_reduced, "mobilenet": mobilenet}


class SSD(nn.Module):
    """Backbone, extra layers and heads of a network of the registry."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        """given: see main."""
        super().__init__()
        self.classes = given["classes"]
        segments, channels = BACKBONES[given["network"]](given["width"])
        for filters, stride, pad in given["extras"]:
            squeezed = max(128, filters // 2)
            extra = conv_relu(channels[-1], squeezed, 1) + conv_relu(squeezed, filters, 3, stride=stride, padding=pad)
            segments.append(nn.Sequential(*extra))
            channels.append(filters)
        self.segments = nn.ModuleList(segments)
        heads = list(zip(channels, given["anchors"], strict=True))
        self.cls = nn.ModuleList(nn.Conv2d(inputs, count * (self.classes + 1), 3, padding=1) for inputs, count in heads)
        self.loc = nn.ModuleList(nn.Conv2d(inputs, count * 4, 3, padding=1) for inputs, count in heads)
        scale = given["l2_scale"]
        self.l2_scale = nn.Parameter(torch.full((1, channels[0], 1, 1), scale)) if scale else None

    def forward(self, data: Any) -> tuple[Any, Any]:
        """Class logits (B, A, C + 1) and offsets (B, A, 4)."""
        cls, loc = [], []
        for k, segment in enumerate(self.segments):
            data = segment(data)
            net = data if k or self.l2_scale is None else F.normalize(data, dim=1) * self.l2_scale
            cls.append(_rows(self.cls[k](net), self.classes + 1))
            loc.append(_rows(self.loc[k](net), 4))
        return torch.cat(cls, 1), torch.cat(loc, 1)


def _rows(net: Any, values: int) -> Any:
    return net.permute(0, 2, 3, 1).reshape(len(net), -1, values)  # (B, h * w * per_cell, values)


def multibox_loss(cls_pred: Any, loc_pred: Any, cls_target: Any, loc_target: Any) -> Any:
    """As symbol/losses.py: mining 3:1 in each image, sums over the positives of the batch; targets are given."""
    log_prob = F.log_softmax(cls_pred, dim=-1)
    positive = cls_target > 0
    count = positive.sum(1, keepdim=True)
    positive_loss = -(log_prob.gather(2, cls_target[..., None])[..., 0] * positive).sum()
    background = torch.where(positive, torch.full_like(log_prob[..., 0], -1.0), -log_prob[..., 0])
    background = background.sort(dim=1, descending=True).values
    rank = torch.arange(background.shape[1])
    negative_loss = (background * ((rank < 3 * count) & (background >= 0))).sum()
    error = F.smooth_l1_loss(loc_pred, loc_target, reduction="none") * positive[..., None]
    return (positive_loss + negative_loss + error.sum()) / count.sum()


def ssd_loss(model: SSD, data: Any) -> Callable[[], Any]:
    """The loss of one batch, with random targets."""
    with torch.no_grad():
        shape = model(data)[0].shape[:2]  # (B, A)
    cls_target = torch.randint(1, model.classes + 1, shape) * (torch.rand(shape) < POSITIVES)
    loc_target = torch.randn(*shape, 4)

    def loss() -> Any:
        cls_pred, loc_pred = model(data)
        return multibox_loss(cls_pred, loc_pred, cls_target, loc_target)

    return loss


def darknet_loss(model: Darknet, data: Any) -> Callable[[], Any]:
    """The same for networks of Darknet sections."""
    with torch.no_grad():
        targets = make_targets(model(data), model.sections)
    return lambda: yolo_loss(model(data), targets)


def make_variant(model: nn.Module, data: Any, memory_format: Any) -> Variant:
    """A function that makes training steps on a constant batch and returns their seconds."""
    model = model.to(memory_format=memory_format).train()
    data = data.to(memory_format=memory_format)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    loss = darknet_loss(model, data) if isinstance(model, Darknet) else ssd_loss(model, data)

    def run(steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()
        return time.perf_counter() - begin

    return run


def main(argv: Sequence[str]) -> None:
    """Serves one network, given as JSON.

    size (H, W), batch, threads, and of an SSD network, width, extras (filters, stride, pad), anchors in a cell of each
    map, l2_scale of the first map or 0, classes without background; of others `sections`, see torch_darknet.
    """
    given = json.loads(argv[0])
    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    spread = 0.25 if "sections" in given else 60.0  # of pixels minus mean, or of pixels / 255
    data = torch.from_numpy(np.random.default_rng(0).normal(0, spread, (given["batch"], 3, *given["size"]))).float()
    models = [Darknet(given["sections"]) if "sections" in given else SSD(given) for _ in range(2)]
    variants = {
        "eager": make_variant(models[0], data, torch.contiguous_format),
        "channels-last": make_variant(models[1], data, torch.channels_last),
    }
    parameters = sum(parameter.numel() for parameter in models[0].parameters())
    print(json.dumps({"parameters": parameters, "version": torch.__version__}), flush=True)
    for line in sys.stdin:
        name, steps = line.split()
        print(variants[name](int(steps)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
