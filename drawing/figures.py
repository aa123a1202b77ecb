"""Pictures of matplotlib: drawn without a display, and there under their name only when they are whole."""

import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Draws a figure as a PNG, replaced atomically; OSError where it cannot be written, which leaves an older one."""
    FigureCanvasAgg(figure)  # needs no display
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.png")
    try:
        figure.savefig(temporary, dpi=dpi, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
