"""What the engines of model.onnx have in common: its inputs and outputs, and batches of another size than its own."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from common.errors import CheckpointError
from common.sizes import DATA, DET
from model.manifest import Manifest

ROW = 6  # numbers of a detection

Shape = Sequence[int | None]


def check_contract(origin: str, manifest: Manifest, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> None:
    """CheckpointError unless the file reads `data` and gives `det` as the manifest has them; None: any number."""
    data, det = inputs.get(DATA, ()), outputs.get(DET, ())
    fits = len(inputs) == 1 and _fits(data, (None, *manifest.image_shape)) and _fits(det, (None, None, ROW))
    if not fits:
        raise CheckpointError(
            f"{origin}: reads {_text(inputs)} and gives {_text(outputs)}, not {DATA} (B, "
            f"{', '.join(map(str, manifest.image_shape))}) and {DET} (B, N, {ROW}); export the model again"
        )


def run_in_batches(run: Callable[[np.ndarray], np.ndarray], data: np.ndarray, size: int | None) -> np.ndarray:
    """run(data) by a network that takes `size` images at a time, None = any number; the last batch is filled up."""
    if size is None or len(data) == size:
        return run(data)
    parts = [data[begin : begin + size] for begin in range(0, len(data), size)]
    missing = size - len(parts[-1])
    if missing:
        parts[-1] = np.concatenate([parts[-1], np.zeros((missing, *data.shape[1:]), data.dtype)])
    return np.concatenate([run(part) for part in parts])[: len(data)]


def _fits(found: Shape, wanted: Shape) -> bool:
    """Whether a shape has the wanted sides; None on either side fits any number."""
    if len(found) != len(wanted):
        return False
    return all(None in (side, other) or side == other for side, other in zip(found, wanted, strict=True))


def _text(ports: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name:.50} {tuple(shape)}" for name, shape in ports.items()) or "nothing"
