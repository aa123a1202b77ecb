"""An SSD of this project trained by PyTorch: the process that benchmarks.torch_accuracy starts and feeds.

Its argument names a file of JSON: symbol (of the raw predictions), start and end (.npz files of the weights by their
names in the symbol), threads, bfloat16, optimizer with momentum, groups of parameters, and how negatives are mined and
losses weighed. It prints the version of PyTorch; then each message on standard input, the learning rate with data,
cls_target, loc_target and normaliser, makes an update and answers with its losses and seconds. At the end of the input
it leaves the weights in the file `end`.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import read_arrays
from benchmarks.torch_peers import multibox_loss
from benchmarks.torch_symbol import TrainedSymbol


class Trainer:
    """A network, channels last, its optimizer and its loss."""

    def __init__(self, given: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> None:
        """given: the file of JSON; weights: with which it begins."""
        shapes = {name: array.shape for name, array in weights.items()}
        self.model = TrainedSymbol(given["symbol"], shapes).to(memory_format=torch.channels_last).train()
        named = self.model.by_name()
        with torch.no_grad():
            for name, tensor in named.items():
                tensor.copy_(torch.from_numpy(weights[name]))
        groups = [{**group, "params": [named[name] for name in group.pop("names")]} for group in given["groups"]]
        self.optimizer = make_optimizer(given["optimizer"], given["momentum"], groups)
        self.bfloat16, self.mining, self.loc_weight = given["bfloat16"], given["mining"], given["loc_weight"]

    def update(self, rate: float, arrays: Sequence[np.ndarray]) -> list[float]:
        """Makes an update with this learning rate; returns the confidence and the localisation loss before it."""
        data, cls_target, loc_target, normaliser = map(torch.from_numpy, arrays)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_mult"]
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            cls_pred, loc_pred = self.model(data.contiguous(memory_format=torch.channels_last))
        targets = cls_target.long(), loc_target, normaliser[0, 0]
        cls_loss, loc_loss = multibox_loss(cls_pred.float(), loc_pred.float(), *targets, **self.mining)
        loc_loss = loc_loss * self.loc_weight
        (cls_loss + loc_loss).backward()
        self.optimizer.step()
        return [cls_loss.item(), loc_loss.item()]

    def weights(self) -> dict[str, np.ndarray]:
        """{name in the symbol: parameter or moving average}."""
        return {name: tensor.detach().contiguous().numpy() for name, tensor in self.model.by_name().items()}


def make_optimizer(name: str, momentum: float, groups: list[dict[str, Any]]) -> Any:
    """PyTorch's own; groups: params, lr_mult and weight_decay of each."""
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=momentum)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](groups)


def main(argv: Sequence[str]) -> None:
    """Serves one training."""
    given = json.loads(Path(argv[0]).read_text("utf-8"))
    torch.set_num_threads(given["threads"])
    with np.load(given["start"]) as weights:
        trainer = Trainer(given, dict(weights))
    print(torch.__version__, flush=True)
    while message := read_arrays(sys.stdin.buffer):
        begin = time.perf_counter()
        losses = trainer.update(message[0]["rate"], message[1])
        print(json.dumps({"losses": losses, "seconds": time.perf_counter() - begin}), flush=True)
    np.savez(given["end"], **trainer.weights())


if __name__ == "__main__":
    main(sys.argv[1:])
