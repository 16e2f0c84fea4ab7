"""The table of what `lowenergy bench` has measured."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def show(rows: Sequence[Mapping[str, Any]], what: str) -> None:
    """Print a line per timing; ratios are relative to the first model's fastest way with the same threads and batch.

    Args:
        rows: the fields of each bench.Timing.
        what: what one run is, a forward pass or a Langevin step.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"ms per {what}, medians", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("model", "way", "threads", "batch", "ms", "quartiles", "a second", "faster", "MiB"):
        table.add_column(column, justify="left" if column in ("model", "way") else "right")
    first = rows[0]["model"]
    stems = {row["model"]: Path(row["model"]).stem for row in rows}
    alone = len(set(stems.values())) == len(stems)
    names = {path: stem if alone else f"{Path(path).parent.name}/{stem}" for path, stem in stems.items()}
    for row in rows:
        alike = [other for other in rows if (other["threads"], other["batch"]) == (row["threads"], row["batch"])]
        yardstick = min((other["ms"] for other in alike if other["model"] == first), default=None)
        table.add_row(
            names[row["model"]],
            row["way"],
            str(row["threads"]),
            str(row["batch"]),
            f"{row['ms']:.2f}",
            f"{row['low_ms']:.2f}, {row['high_ms']:.2f}",
            f"{row['per_second']:,.0f}",
            f"{yardstick / row['ms']:.2f}×" if yardstick else "",
            f"{row['mib']:.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 100, highlight=False, markup=False, emoji=False).print(table)
