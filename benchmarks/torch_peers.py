"""The networks of this project in PyTorch, to compare the speed of a training step.

Run by benchmarks.train_step in a process of its own (two OpenMP run-times in one process disturb each other): each line
`VARIANT STEPS` on standard input answers with the seconds that the steps took; the first line of output has the number
of parameters and the version.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.torch_darknet import Darknet, make_targets, yolo_loss
from benchmarks.torch_symbol import TrainedSymbol

LEARNING_RATE = 1e-5
FOCAL_GAMMA, FOCAL_ALPHA, HUBER_DELTA, BOX_WEIGHT = 1.5, 0.25, 0.1, 50.0
POSITIVES = 0.01  # of the anchors
Variant = Callable[[int], float]


def multibox_loss(
    cls_pred: Any,
    loc_pred: Any,
    cls_target: Any,
    loc_target: Any,
    normaliser: Any,
    ratio: float = 3.0,
    minimum: int = 0,
) -> tuple[Any, Any]:
    """(confidence loss, localisation loss) as symbol/losses.py has them, with its alpha 1, summed over the images.

    cls_pred (B, A, C + 1), loc_pred and loc_target (B, A, 4); cls_target (B, A) whole numbers: 0 background, -1
    ignored; normaliser: the number of positives. ratio, minimum: of the negatives that are mined in each image.
    """
    log_prob = F.log_softmax(cls_pred, dim=-1)
    positive = cls_target > 0
    count = positive.sum(1, keepdim=True)
    positive_loss = -(log_prob.gather(2, cls_target.clamp(min=0)[..., None])[..., 0] * positive).sum()
    background = torch.where(cls_target == 0, -log_prob[..., 0], torch.full_like(log_prob[..., 0], -1.0))
    background = background.sort(dim=1, descending=True).values
    rank = torch.arange(background.shape[1])
    mined = (ratio * count).floor().clamp(min=minimum)
    negative_loss = (background * ((rank < mined) & (background >= 0))).sum()
    error = F.smooth_l1_loss(loc_pred, loc_target, reduction="none") * positive[..., None]
    scale = 1.0 / normaliser.clamp(min=1)
    return (positive_loss + negative_loss) * scale, error.sum() * scale


def ssd_loss(model: TrainedSymbol, data: Any, classes: int) -> Callable[[], Any]:
    """The loss of one batch, with random targets; the model gives logits (B, A, C + 1) and offsets (B, A, 4)."""
    cls_target, loc_target = _random_targets(model, data, classes)
    positives = (cls_target > 0).sum()

    def loss() -> Any:
        cls_pred, loc_pred = model(data)
        cls_pred = cls_pred.view(*loc_target.shape[:2], -1)
        return sum(multibox_loss(cls_pred, loc_pred.view_as(loc_target), cls_target, loc_target, positives))

    return loss


def effdet_loss(model: TrainedSymbol, data: Any, classes: int) -> Callable[[], Any]:
    """The same for logits (B, A, C) and offsets (B, A, 4): focal loss and Huber's (RetinaNet, section 3; effdet)."""
    cls_target, loc_target = _random_targets(model, data, classes)
    positive = cls_target > 0
    wanted = F.one_hot(cls_target, classes + 1)[..., 1:].float()
    count = positive.sum() + 1

    def loss() -> Any:
        logits, offsets = model(data)
        logits, offsets = logits.view_as(wanted), offsets.view_as(loc_target)
        entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        missed = (wanted - torch.sigmoid(logits)).abs() ** FOCAL_GAMMA
        balance = wanted * FOCAL_ALPHA + (1 - wanted) * (1 - FOCAL_ALPHA)
        error = F.huber_loss(offsets, loc_target, reduction="none", delta=HUBER_DELTA) * positive[..., None]
        return (balance * missed * entropy).sum() / count + BOX_WEIGHT * error.sum() / (4 * count)

    return loss


def _random_targets(model: TrainedSymbol, data: Any, classes: int) -> tuple[Any, Any]:
    """Class numbers (B, A), mostly 0, and offsets (B, A, 4)."""
    with torch.no_grad():
        loc_target = torch.randn_like(model(data)[1]).reshape(len(data), -1, 4)
    shape = loc_target.shape[:2]
    return torch.randint(1, classes + 1, shape) * (torch.rand(shape) < POSITIVES), loc_target


LOSSES = {"ssd": ssd_loss, "efficientdet": effdet_loss}


def darknet_loss(model: Darknet, data: Any) -> Callable[[], Any]:
    """The same for networks of Darknet sections."""
    with torch.no_grad():
        targets = make_targets(model(data), model.sections)
    return lambda: yolo_loss(model(data), targets)


def make_variant(
    given: Mapping[str, Any], data: Any, memory_format: Any, bfloat16: bool = False
) -> tuple[int, Variant]:
    """(number of parameters, a function that makes training steps on a constant batch and returns their seconds).

    bfloat16: the forward pass and the losses under autocast.
    """
    is_darknet = "sections" in given
    model: nn.Module = Darknet(given["sections"]) if is_darknet else TrainedSymbol(given["symbol"], given["shapes"])
    model = model.to(memory_format=memory_format).train()
    data = data.to(memory_format=memory_format)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    loss = darknet_loss(model, data) if is_darknet else LOSSES[given["family"]](model, data, given["classes"])

    def run(steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                value = loss()
            value.backward()
            optimizer.step()
        return time.perf_counter() - begin

    return sum(parameter.numel() for parameter in model.parameters()), run


def main(argv: Sequence[str]) -> None:
    """Serves one network: argv names a file of JSON.

    size (H, W), batch, threads, classes without background; the symbol of the raw predictions with the shapes of its
    arguments and its family; of a Darknet `sections`, see torch_darknet.
    """
    given = json.loads(Path(argv[0]).read_text("utf-8"))
    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    spread = 0.25 if "sections" in given else 60.0  # of pixels minus mean, or of pixels / 255
    data = torch.from_numpy(np.random.default_rng(0).normal(0, spread, (given["batch"], 3, *given["size"]))).float()
    parameters, eager = make_variant(given, data, torch.contiguous_format)
    variants = {"eager": eager, "channels-last": make_variant(given, data, torch.channels_last)[1]}
    variants["autocast"] = make_variant(given, data, torch.channels_last, bfloat16=True)[1]
    print(json.dumps({"parameters": parameters, "version": torch.__version__}), flush=True)
    for line in sys.stdin:
        name, steps = line.split()
        print(variants[name](int(steps)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
