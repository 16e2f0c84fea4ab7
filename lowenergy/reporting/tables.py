"""The figures on disk as tables: for the terminal, for the page, for DVC's plots."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lowenergy.base import cards, files
from lowenergy.base.cards import Bounds, told_apart
from lowenergy.params import Params

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
    "calibration_error": "{:.3f}",
    "agreement": "{:.1%}",
    "lost_most": "{}",
    "validation.fid": "{:.2f}",
    "fid": "{:.2f}",
    "fid_to_teacher": "{:.2f}",
    "inception_score": "{:.2f}",
    "energy_correlation": "{:.3f}",
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
    "micronet.score_integer": "{:.5f}",
    "micronet.score_tree": "{:.5f}",
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
# What one looks at first: the quality to choose by, the quality as tested, then what it costs.
FIRST = ["validation.accuracy", "accuracy", "validation.fid", "fid", "size_bytes", "compression_ratio"]
BROAD = 32  # letters of a name in a line
ALIKE = "≈"  # before a figure that cannot be told from the teacher's
LEGEND = f"{ALIKE} cannot be told from the teacher's figure by so few images"
ARROW = " → "


def collect(p: Params, root: Path = Path()) -> pd.DataFrame:
    """The cards of all models, flattened: a row for each, with the name of its teacher; figures that it lacks are NaN.

    Raises:
        FileError: there are no cards.
    """
    by_name = cards.collect(p.models, root)
    if not by_name:
        raise files.FileError("cards/: no figures of these models as params.yaml has them; `dvc repro` makes them")
    rows = [
        {"target": p.target_of(name), "model": name, "chain": made_by(p, name), **card, "lost_most": _lost_most(card)}
        for name, card in by_name.items()
    ]
    table = pd.json_normalize(rows)
    figures = [name for name in FORMATS if name in table and table[name].notna().any()]
    return table[["target", "model", "chain", *figures, *(name for name in table if str(name).endswith("_interval"))]]


def _lost_most(card: Mapping[str, Any]) -> str | None:
    if (most := card.get("lost_most")) is None:
        return None
    return f"{most['label']}: {most['teacher']:.0%} to {most['own']:.0%}"


def made_by(p: Params, name: str) -> str:
    """The methods of a branch's chain, after the teacher that it begins with if that is not its target; '' for a
    teacher."""
    first, *links = p.chain(name)
    methods = [p.branches[link].by for link in links]
    return ARROW.join(methods if first == p.target_of(name) else [first, *methods])


def title_of(p: Params, target: str) -> str:
    """The title of a teacher together with its branches."""
    kind = p.teachers[target].kind
    title = TITLES.get(kind, kind)
    return title if target == kind else f"{target}: {title}"


def quality_of(rows: pd.DataFrame) -> str:
    """The quality that size is traded against and models are chosen by: FID if there is one, else accuracy.

    It is the validation figure, or the test figure in older tables, which have no other.
    """
    known = [
        column
        for quality in ("fid", "accuracy")
        for column in (f"validation.{quality}", quality)
        if column in rows and rows[column].notna().any()
    ]
    return known[0] if known else "accuracy"


def is_fid(quality: str) -> bool:
    """True if the quality is an FID, of which less is better; of accuracy, more is."""
    return quality.endswith("fid")


def bounds_of(row: Mapping[Any, Any], figure: str, *, lost: bool = False) -> Bounds | None:
    """The interval of a figure or, with `lost`, of what it has lost against the teacher's; None if there is none."""
    split, _, name = figure.rpartition(".")
    bounds = row.get(".".join([*filter(None, [split]), *(["lost"] if lost else []), f"{name}_interval"]))
    return bounds if isinstance(bounds, list | tuple) else None


def between(row: Mapping[Any, Any], figure: str) -> str:
    """The interval of a figure as text; '' if there is none. Shares are in per cent, without the sign."""
    scale = 100 if "%" in FORMATS[figure] else 1
    ends = [scale * end for end in bounds_of(row, figure) or ()]
    return "–".join(f"{end:.3g}" if abs(end) < 999.5 else f"{end:.0f}" for end in ends)  # never 1.2e+03


def alike(row: Mapping[Any, Any], figure: str) -> bool:
    """True if a branch's figure cannot be told from its teacher's."""
    lost = bounds_of(row, figure, lost=True)
    return lost is not None and not told_apart(lost, None)


def as_good(row: Mapping[Any, Any]) -> bool:
    """True if no validation quality of a branch is worse than its teacher's, as far as the images can tell."""
    lost = [bounds_of(row, f"validation.{quality}", lost=True) for quality in ("accuracy", "fid")]
    known = [bounds for bounds in lost if bounds is not None]
    return bool(known) and all(low <= 0 for low, _ in known)


def shown(rows: pd.DataFrame, everything: bool = True) -> pd.DataFrame:
    """The figures of one target as text, without columns that it lacks."""
    names = [name for name in rows if name in (FORMATS if everything else FIRST) and rows[name].notna().any()]
    text = rows[names].apply(lambda column: column.map(FORMATS[str(column.name)].format, na_action="ignore").fillna(""))
    for name in names:
        text[name] = [
            f"{ALIKE} {value}" if value and alike(row, str(name)) else value
            for value, row in zip(text[name], rows.to_dict("records"), strict=True)
        ]
    return text


def show(table: pd.DataFrame, p: Params, *, everything: bool = False) -> None:
    """Print a table per target, a row per model; with `everything`, a row per figure."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # A pipe or a log has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False, markup=False, emoji=False)
    marked = False
    for target, rows in table.groupby("target", sort=False):
        text = shown(rows.set_index("model"), everything)
        marked |= bool(text.map(lambda value: str(value).startswith(ALIKE)).to_numpy().any())
        sheet = Table(title=title_of(p, str(target)), title_justify="left", box=box.SIMPLE_HEAD)
        if everything:
            sheet.add_column("", no_wrap=True)
            text = text.T
        else:
            width = min(BROAD, max(map(len, text.index)))  # longer names go on below, and leave figures their room
            sheet.add_column("model", overflow="fold", min_width=width, max_width=width)
            text.insert(0, "made by", list(rows["chain"]))
        for column in text.columns:
            # Let the names of models break at their hyphens.
            head = str(column).replace("-", "-\n") if everything else HEADS.get(str(column), str(column))
            sheet.add_column(head, justify="left" if column == "made by" else "right")
        for name, row in zip(text.index, text.to_numpy(), strict=True):
            sheet.add_row(str(name), *map(str, row))
        console.print(sheet)
    if marked:
        console.print(LEGEND)


def pareto_front(
    sizes: Sequence[float],
    losses: Sequence[float],
    apart: Callable[[int, int], bool] = lambda first, second: True,
    taken: int | None = None,
) -> list[int]:
    """Indices, by growing size, of the models worth their bytes: each but `taken` is better than all smaller ones.

    Args:
        apart: True if two of them can be told apart; a larger one that cannot is not worth its bytes.
        taken: one that is worth its bytes in any case.
    """
    front: list[int] = []
    best: int | None = None
    for i in sorted(range(len(sizes)), key=lambda i: (sizes[i], losses[i])):
        is_lower = best is None or losses[i] < losses[best]
        if i == taken or best is None or (is_lower and apart(i, best)):
            front.append(i)
            best = i if is_lower else best
    return front


def to_take(rows: pd.DataFrame) -> int | None:
    """The row of the smallest branch that is as good as its teacher, as far as the images can tell; None if none is."""
    good = [i for i, row in enumerate(rows.to_dict("records")) if as_good(row)]
    return min(good, key=lambda i: rows["size_bytes"].iloc[i], default=None)


def front_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one target that are on the front of quality against bytes, smallest first."""
    quality = quality_of(rows)
    losses = [v if is_fid(quality) else -v for v in rows[quality]]
    lost = [bounds_of(row, quality, lost=True) for row in rows.to_dict("records")]
    sizes = rows["size_bytes"].tolist()
    return rows.iloc[pareto_front(sizes, losses, lambda i, j: told_apart(lost[i], lost[j]), to_take(rows))]
