"""What one commit computes, for benchmarks/compare_commits.py: run with that commit's folder on PYTHONPATH.

python -P benchmarks/commit_probe.py networks FOLDER
python -P benchmarks/commit_probe.py detect FOLDER IMAGES MODEL...

It imports doors that stay, no modules of one layout, and must not import its neighbours: they belong to another commit.
"""

import hashlib
import importlib
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

DOORS = ("machine.runtime", "config.runtime")  # of mxnet, the later one and the earlier one
CLASSES = 4
THRESHOLD = 0.01
GAIN = 1.4  # of weights; with 2, as He initialises them, scores of deep networks are all 1
PIXELS = 5.0  # by which formula() is multiplied for an input of small numbers
# (network, input side, options) whose detections are computed: small ones of each family.
COMPUTED: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("mobilenet", 128, {"width": 0.25}),
    ("mobilenet_v2", 128, {"width": 0.25}),
    ("densenet-tiny", 128, {}),
    ("resnet50", 128, {}),
    ("vgg16_ssd_voc", 300, {"post_process": "per_class"}),
    ("yolov3_tiny", 96, {"width": 0.25}),
    ("yolov3_spp_mini", 96, {}),
    ("efficientdet_mini", 128, {}),
    ("efficientdet_small", 128, {}),
)
SIDES = {"yolov3": 416, "efficientdet": 512}  # of the symbols of all networks that are written down
SSD_SIDES = (300, 512)


def mxnet() -> Any:
    """mxnet by the project's own door, wherever that is."""
    for name in DOORS:
        try:
            return importlib.import_module(name).mx
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
    raise ModuleNotFoundError(f"none of {', '.join(DOORS)} is there")


def formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that depend on the name and on every index, of a size that keeps activations near 1; float32."""
    steps = zlib.crc32(name.encode()) % 997 + np.arange(np.prod(shape, dtype=np.int64))
    values = np.sin(steps * 0.37 + np.sin(steps * 0.11)).astype(np.float32).reshape(shape)
    if name.endswith(("gamma", "_var")):
        return 1 + 0.1 * values
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 100
    return values * np.float32(GAIN / np.sqrt(fan_in))


def detections(network: str, side: int, options: dict[str, Any]) -> np.ndarray:
    """det (1, N, 6) of get_symbol with weights and pixels by formula."""
    from symbol.symbol_factory import get_symbol

    mx = mxnet()
    symbol = get_symbol(network, side, CLASSES, score_threshold=THRESHOLD, **options)
    executor = symbol.simple_bind(mx.cpu(), grad_req="null", data=(1, 3, side, side))
    for name, array in [*executor.arg_dict.items(), *executor.aux_dict.items()]:
        array[:] = formula(name, array.shape)
    executor.arg_dict["data"][:] = formula("data", (3 * side * side,)).reshape(1, 3, side, side) * PIXELS
    det: np.ndarray = executor.forward(is_train=False)[0].asnumpy()
    return det


def symbol_digests() -> dict[str, np.ndarray]:
    """{network, side, kind: sha256 of the symbol's JSON as bytes} of every network, with default options."""
    from symbol import symbol_factory

    found = {}
    for network in symbol_factory.list_networks():
        for side in [side for family, side in SIDES.items() if network.startswith(family)] or SSD_SIDES:
            for kind in ("get_symbol", "get_symbol_train"):
                text = getattr(symbol_factory, kind)(network, side, CLASSES).tojson()
                found[f"{network} {side} {kind}"] = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    return found


def write_networks(folder: Path) -> None:
    """networks.npz: det of COMPUTED; symbols.npz: what is not computed of all others."""
    found = {f"{network} {side}": detections(network, side, options) for network, side, options in COMPUTED}
    for name, det in found.items():
        rows = int((det[..., 0] >= 0).sum())
        if not rows or not np.isfinite(det).all():
            raise ValueError(f"{name}: {rows} detections, perhaps not finite: nothing to compare")
    np.savez(folder / "networks.npz", **found)
    np.savez(folder / "symbols.npz", **symbol_digests())


def write_detections(folder: Path, images: Path, models: list[str]) -> None:
    """detections.npz: what Detector finds with each model (a folder or a prefix) in each image."""
    from detect.detector import Detector

    found = {}
    for model in models:
        detector = Detector(model, engine="mxnet", threshold=THRESHOLD)
        for path in sorted(images.iterdir()):
            found[f"{Path(model).parent.name}/{Path(model).name}|{path.name}"] = detector.detect(path)
    np.savez(folder / "detections.npz", **found)


if __name__ == "__main__":
    if sys.argv[1] == "networks":
        write_networks(Path(sys.argv[2]))
    else:
        write_detections(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
