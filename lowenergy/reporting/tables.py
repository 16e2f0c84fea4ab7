"""The figures on disk as tables: for the terminal, for the page, for DVC's plots."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from lowenergy.base import files
from lowenergy.base.params import BRANCHES

TITLES = {
    "classifier": "Classifier",
    "ebm": "Energy-based model (EBM)",
    "jem": "Joint energy model (JEM)",
}
FORMATS = {
    "validation.accuracy": "{:.2%}",
    "accuracy": "{:.2%}",
    "validation.nll": "{:.3f}",
    "nll": "{:.3f}",
    "validation.fid": "{:.2f}",
    "fid": "{:.2f}",
    "inception_score": "{:.2f}",
    "ood_auroc.noise": "{:.3f}",
    "ood_auroc.rotation": "{:.3f}",
    "ood_auroc.reduction": "{:.3f}",
    "recoveries": "{:.0f}",
    "size_bytes": "{:,.0f}",
    "compression_ratio": "{:.1f}×",
    "bits_per_weight": "{:.2f}",
    "parameters": "{:,.0f}",
    "nonzero_parameters": "{:,.0f}",
    "macs": "{:,.0f}",
    "micronet.storage": "{:,.0f}",
    "micronet.operations": "{:,.0f}",
    "micronet.score": "{:.5f}",
    "micronet.simplified": "{:.5f}",
}
HEADS = {
    "validation.accuracy": "val. acc.",
    "validation.fid": "val. FID",
    "fid": "FID",
    "size_bytes": "bytes",
    "compression_ratio": "ratio",
    "macs": "MACs",
}
# What one looks at first: quality by which to choose, and as tested; then what it costs.
FIRST = ["validation.accuracy", "accuracy", "validation.fid", "fid", "size_bytes", "compression_ratio"]
FIRST += ["parameters", "macs"]


def collect(targets: list[str], root: Path = Path()) -> pd.DataFrame:
    """metrics/<target>/<branch>.card.json of these targets, flattened: a row per model, figures it lacks are NaN."""
    rows = []
    for target in targets:
        found = {path.name.removesuffix(".card.json"): path for path in (root / "metrics" / target).glob("*.card.json")}
        for branch in sorted(found, key=lambda name: (*BRANCHES, name).index(name)):  # added ones come last
            figures = pd.json_normalize(json.loads(found[branch].read_text())).iloc[0].to_dict()
            rows.append({"target": target, "branch": branch, **figures})
    if not rows:
        raise files.FileError("metrics/: no figures of these targets; `dvc repro` makes them")
    order = [name for name in FORMATS if any(name in row for row in rows)]
    return pd.DataFrame(rows, columns=["target", "branch", *order])


def quality_of(rows: pd.DataFrame) -> str:
    """What the size is paid with, and models are chosen by: an energy's samples, a classifier's answers.

    Of validation images; of test images where there are no others, in tables of before there were.
    """
    known = [
        column
        for quality in ("fid", "accuracy")
        for column in (f"validation.{quality}", quality)
        if column in rows and rows[column].notna().any()
    ]
    return known[0] if known else "accuracy"


def is_fid(quality: str) -> bool:
    """Whether less of it is better; accuracy is the other way round."""
    return quality.endswith("fid")


def shown(rows: pd.DataFrame, everything: bool = True) -> pd.DataFrame:
    """The figures of one target as text, columns that it lacks left out."""
    figures = rows.dropna(axis="columns", how="all")
    figures = figures[[name for name in figures if name in (FORMATS if everything else FIRST)]]
    return figures.apply(lambda column: column.map(FORMATS[str(column.name)].format, na_action="ignore").fillna(""))


def show(table: pd.DataFrame, chain: Callable[[str], str], *, everything: bool = False) -> None:
    """Print a table per target, a row per branch; with `everything`, a row per figure.

    Args:
        chain: branch -> how it came about, to call it by.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # A pipe or a log has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    for target, rows in table.groupby("target", sort=False):
        text = shown(rows.set_index("branch").rename(index=chain), everything)
        if everything:
            text = text.T
        sheet = Table(title=TITLES.get(str(target), str(target)), title_justify="left", box=box.SIMPLE_HEAD)
        sheet.add_column("" if everything else "branch")
        for column in text.columns:
            sheet.add_column(HEADS.get(str(column), str(column)), justify="right")
        for name, row in zip(text.index, text.to_numpy(), strict=True):
            sheet.add_row(str(name), *map(str, row))
        console.print(sheet)


def pareto_front(sizes: list[float], losses: list[float]) -> list[int]:
    """Indices, by growing size, of the models that no smaller or equal-sized model matches in loss."""
    best, front = float("inf"), []
    for i in sorted(range(len(sizes)), key=lambda i: (sizes[i], losses[i])):
        if losses[i] < best:
            best = losses[i]
            front.append(i)
    return front


def front_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one target that are on the front of quality against bytes, smallest first."""
    quality = quality_of(rows)
    losses = [v if is_fid(quality) else -v for v in rows[quality]]
    return rows.iloc[pareto_front(rows["size_bytes"].tolist(), losses)]
