"""One look for all figures, the page's and the pipeline's."""

from typing import Any

GAP = 2  # pixels between the images of a grid


def axes(width: float = 5.0, height: float = 3.4) -> tuple[Any, Any]:
    """A figure, `width` by `height` inches, and its axes."""
    # Imported here: most who import this module draw nothing.
    import matplotlib
    from matplotlib.figure import Figure

    # Left in place: texts are laid out when the figure is saved.
    matplotlib.rcParams.update({"svg.hashsalt": "lowenergy", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def plain(text: str) -> str:
    """Text of the user's as matplotlib draws it as it is: what is between two $ would be a formula."""
    return text.replace("$", r"\$")
