"""The picture of tools/anchors.py: widths and heights of objects with the anchors before and after."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from drawing.figures import save_figure

DPI = 90
DOT_AREA = 6
SHOWN = 20_000  # dots, every k-th object of larger sets


def save_picture(path: Path, sizes: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
    """Draws sizes (n, 2) and anchors (k, 2), pixels, as a PNG that is replaced atomically.

    On the left widths and heights on logarithmic axes, on the right the fitted anchors as boxes of one centre.
    """
    figure = Figure(figsize=(12, 6), layout="constrained")
    scatter, outlines = figure.subplots(1, 2)
    dots = sizes[:: -(-len(sizes) // SHOWN)]
    scatter.scatter(*dots.T, s=DOT_AREA, alpha=0.35, color="0.55", linewidths=0, label=f"{len(sizes)} objects")
    scatter.scatter(*before.T, s=60, marker="x", color="tab:blue", label="anchors before")
    scatter.scatter(*after.T, s=70, marker="o", facecolors="none", edgecolors="tab:red", linewidths=2, label="after")
    scatter.set(xscale="log", yscale="log", xlabel="width, pixels of the input", ylabel="height, pixels of the input")
    scatter.grid(True, which="both", linewidth=0.3)
    scatter.legend()
    for width, height in after:
        outlines.add_patch(Rectangle((-width / 2, -height / 2), width, height, fill=False, edgecolor="tab:red"))
    half = after.max() * 0.55
    outlines.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", title="anchors after")
    save_figure(figure, path, DPI)
