"""In the place of benchmarks.torch_trainer, without torch: it notes what it is told and adds 1 to each weight."""

import json
import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import read_arrays

given = json.loads(Path(sys.argv[1]).read_text())
with np.load(given["start"]) as start:
    weights = dict(start)
print("stand-in", flush=True)
updates = []
while message := read_arrays(sys.stdin.buffer):
    head, arrays = message
    updates.append({**head, "shapes": [array.shape for array in arrays], "positives": float(arrays[3][0, 0])})
    print(json.dumps({"losses": [2.0, 1.0], "seconds": 0.5}), flush=True)
np.savez(given["end"], **{name: array + 1 for name, array in weights.items()})
notes = Path(os.environ["NOTES"])
np.savez(notes.with_suffix(".npz"), **weights)
notes.write_text(json.dumps({**given, "updates": updates}))
