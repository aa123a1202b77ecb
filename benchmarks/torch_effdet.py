"""EfficientDet-D0 of PyPI's effdet in PyTorch; run by benchmarks.effdet_forward in a process of its own.

Each line with a number of forwards on standard input answers with their seconds; the first line of output has the
number of parameters and the versions.
"""

import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version

import torch


def declare_nms() -> None:
    """Declares torchvision's suppression, which effdet imports and a forward does not use, where torch is for CPUs.

    torchvision from PyPI is built for CUDA's torch; beside another its import fails for want of these operators.
    """
    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)  # a library that is deleted takes its operators with it


KEPT: list[torch.library.Library] = []


def main(argv: Sequence[str]) -> None:
    """Serves one setting, given as JSON: size, batch, classes, threads."""
    declare_nms()
    from effdet import create_model

    given = json.loads(argv[0])
    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    model = create_model(
        "tf_efficientdet_d0", pretrained=False, pretrained_backbone=False, num_classes=given["classes"]
    ).eval()
    data = torch.randn(given["batch"], 3, *given["size"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    answer = {"parameters": parameters, "version": f"effdet {version('effdet')}, torch {torch.__version__}"}
    print(json.dumps(answer), flush=True)
    with torch.no_grad():
        for line in sys.stdin:
            begin = time.perf_counter()
            for _ in range(int(line)):
                model(data)
            print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
