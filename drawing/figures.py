"""Pictures of matplotlib: drawn without a display, and there under their name only when they are whole."""

import io
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from common.files import write_atomically


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Draws a figure as a PNG, replaced atomically; OSError where it cannot be written, which leaves an older one."""
    FigureCanvasAgg(figure)  # needs no display
    picture = io.BytesIO()
    figure.savefig(picture, dpi=dpi, format="png")
    write_atomically(path, picture.getvalue())


def svg_of(figure: Figure) -> str:
    """A figure as an <svg> element to stand in a page; letters are the page's."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]
