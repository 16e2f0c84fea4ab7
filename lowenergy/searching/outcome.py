"""What a search has found: on the terminal, and as a page and a table under searches/."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lowenergy.base import files
from lowenergy.reporting import front, page
from lowenergy.reporting.tables import FORMATS, HEADS
from lowenergy.searching.goal import Limit, qualities
from lowenergy.searching.study import Result, Search

SHARE = "share_of_time"  # of the teacher's, where it is what is minimised


def table_of(results: list[Result]) -> pd.DataFrame:
    """A row per trial: its experiment, chain and parameters, validation figures, what it takes."""
    rows = [
        {
            "experiment": result.name,
            "chain": result.chain,
            "within": result.within,
            **{f"validation.{name}": result.figures["validation"][name] for name in qualities(result.figures)},
            **{name: result.figures[name] for name in ("size_bytes", "compression_ratio", "macs")},
            **({SHARE: result.figures[SHARE]} if SHARE in result.figures else {}),
            **{name: value for name, value in result.values.items() if not name.endswith(".source")},
        }
        for result in results
    ]
    return pd.DataFrame(rows)


def show_front(search: Search, most: int = 12) -> None:
    """Print the front: what no cheaper trial matches."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found = search.front()
    if not found:
        return
    rows = table_of(found[-most:] if len(found) > most else found)
    sheet = Table(title=f"{search.name}: front", title_justify="left", box=box.SIMPLE_HEAD)
    columns = [name for name in rows if name in FORMATS or name == SHARE]
    for name in ("experiment", "chain", *columns, "limits"):
        head = {SHARE: "time", **HEADS}.get(str(name), str(name))
        sheet.add_column(head, justify="left" if name in ("experiment", "chain") else "right")
    for _, row in rows.iterrows():
        figures = [f"{row[SHARE]:.2f}×" if name == SHARE else FORMATS[str(name)].format(row[name]) for name in columns]
        sheet.add_row(row["experiment"], row["chain"], *figures, "kept" if row["within"] else "")
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(sheet)


def progress(search: Search, done: int, left: float) -> None:
    """The front so far, and the time left."""
    show_front(search)
    best = search.winner()
    so_far = f"best {best.name}, {_cost(search, best)}" if best else "none within the limits yet"
    print(f"{done} trials, {so_far}; about {left / 60:.0f} min left", flush=True)


def write(search: Search) -> list[Path]:
    """searches/NAME.csv with all trials, searches/NAME.html with the front to point at; their paths."""
    results = search.results()
    rows = table_of(results)
    paths = [search.path.with_suffix(".csv"), search.path.with_suffix(".html")]
    files.write_bytes(paths[0], rows.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
    files.write_bytes(paths[1], _page(search, rows).encode())
    return paths


def _page(search: Search, rows: pd.DataFrame) -> str:
    teacher = {
        "experiment": "teacher",
        "size_bytes": search.teacher["size_bytes"],
        **{f"validation.{name}": search.teacher["validation"][name] for name in qualities(search.teacher)},
    }
    drawn = pd.concat([pd.DataFrame([teacher]), rows]).set_index("experiment")
    shown = table_of(search.front()).set_index("experiment")
    text = shown.apply(lambda column: column.map(FORMATS.get(str(column.name), "{}").format, na_action="ignore"))
    body = (
        f"<h1>{search.name}: {len(rows)} trials</h1><p>{limits(search)}. All figures are of validation images.</p>"
        f'<section class="card">{front.drawing(drawn, names=False)}'
        "<figcaption>On the line: trials that no smaller file matches. Point at one for its figures.</figcaption>"
        "</section><details open><summary>The front</summary>"
        f"{page.html_table(text.fillna(''), 'experiment')}</details>"
    )
    return page.document(f"lowenergy search: {search.name}", body)


def limits(search: Search) -> str:
    """The goal in words."""
    goal = search.goal
    parts = [f"{search.target}: least {goal.minimize}"]
    if goal.max_loss is not None:
        parts.append(f"at most {_in_words(goal.max_loss)} lost")
    parts += [
        f"at most {limit:,} {what}" for limit, what in ((goal.max_bytes, "bytes"), (goal.max_macs, "MACs")) if limit
    ]
    return ", ".join(parts)


def _in_words(limit: Limit) -> str:
    return (
        f"{100 * limit.amount:g} % of the teacher's figure" if limit.relative else f"{limit.amount:g} (points, or FID)"
    )


def _cost(search: Search, result: Result) -> str:
    if search.goal.minimize == "latency":
        return f"{result.cost:.2f} of the teacher's time"
    return f"{result.cost:,.0f} {search.goal.minimize}"


def end(search: Search, card: Mapping[str, Any] | None) -> None:
    """Print the front, the winner with the command that applies it, and its test figures.

    Args:
        card: of the winner, with its test figures, which nobody has looked at before; None: nothing met the limits.
    """
    show_front(search)
    for path in write(search):
        print(path)
    for name, why in list(search.failures().items())[:5]:
        print(f"{name}: {why}")
    best = search.winner()
    if best is None or card is None:
        print(f"No trial kept the limits ({limits(search)}). The nearest:")
        for result in search.nearest():
            print(f"  {result.name}  {result.chain}  {_cost(search, result)}  {_figures(result.figures['validation'])}")
        return
    own, theirs = (_figures(figures["validation"]) for figures in (best.figures, search.teacher))
    print(f"Take {best.name}: {best.chain}, {_cost(search, best)}; validation {own}, the teacher {theirs}")
    tested, of_teacher = _figures(card), _figures(search.teacher)
    print(f"On the test images, looked at once: {tested}, the teacher {of_teacher}")
    print(f"  dvc exp apply {best.name}")


def _figures(found: Mapping[str, Any]) -> str:
    names = [name for name in ("accuracy", "fid") if name in found]
    return ", ".join(f"{HEADS.get(name, name)} {FORMATS[name].format(found[name])}" for name in names)
