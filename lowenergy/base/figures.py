"""One look for all figures, on the page and in the pipeline."""

from typing import Any

GAP = 2  # pixels between the images of a grid


def axes(width: float = 5.0, height: float = 3.4) -> tuple[Any, Any]:
    """A figure, `width` by `height` inches, and its axes."""
    # Imported here, because most importers of this module draw nothing.
    import matplotlib
    from matplotlib.figure import Figure

    # Not restored afterwards: text is laid out only when the figure is saved.
    matplotlib.rcParams.update({"svg.hashsalt": "lowenergy", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def plain(text: str) -> str:
    """Escape the user's text so that matplotlib draws it literally: text between two $ would become a formula."""
    return text.replace("$", r"\$")
