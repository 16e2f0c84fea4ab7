"""What a search has found: on the terminal, and as a page and a table under searches/."""

import html
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lowenergy.base import files
from lowenergy.base.nested import MISSING, leaves, value_at
from lowenergy.reporting import front, page
from lowenergy.reporting.tables import ALIKE, FORMATS, HEADS, LEGEND, alike, between, shown
from lowenergy.searching.goal import COSTS, QUALITIES, Figures, Limit, qualities, too_few
from lowenergy.searching.study import Result, Search

SHARE = "share_of_time"  # of the teacher's, if latency is minimised
TEACHER = "teacher"  # its name among those of experiments


def table_of(results: list[Result]) -> pd.DataFrame:
    """A table with a row per trial: its experiment, chain, validation figures, what it takes, and its parameters."""
    rows = [
        {
            "experiment": result.name,
            "model": list(result.entries)[-1],
            "chain": result.chain,
            "within": result.within,
            **_validation(result.figures),
            **{name: result.figures[name] for name in ("size_bytes", "compression_ratio", "macs")},
            **({SHARE: result.figures[SHARE]} if SHARE in result.figures else {}),
            **result.values,
        }
        for result in results
    ]
    return pd.DataFrame(rows)


def _validation(figures: Figures) -> dict[str, Any]:
    """The figures that one chooses by, their intervals and those of what was lost, under the names that tables use."""
    flat = {}
    for name in qualities(figures):
        for place in (name, f"{name}_interval", f"lost.{name}_interval"):
            if (value := value_at(figures["validation"], place)) is not MISSING:
                flat[f"validation.{place}"] = value
    return flat


def show_front(search: Search, most: int = 12) -> None:
    """Print the front, or its most expensive trials if it has more than `most`; see Search.front."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = table_of(search.front()[-most:])
    if rows.empty:
        return
    text, best = _text(rows), search.winner()
    sheet = Table(title=f"{search.name}: front", title_justify="left", box=box.SIMPLE_HEAD)
    for name in (*text, "limits"):
        sheet.add_column({SHARE: "time", **HEADS}.get(name, name), justify="right" if name in FORMATS else "left")
    for cells, row in zip(text.to_numpy(), rows.to_dict("records"), strict=True):
        is_best = best is not None and row["experiment"] == best.name
        sheet.add_row(*map(str, cells), "kept, the least" if is_best else "kept" if row["within"] else "")
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False, markup=False, emoji=False)
    console.print(sheet)
    if text.map(lambda cell: str(cell).startswith(ALIKE)).to_numpy().any():
        console.print(LEGEND)


def _text(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as a reader wants them: experiment, chain, and figures in their units.

    Figures that cannot be told from the teacher's are marked.
    """
    text = shown(rows)
    if SHARE in rows:
        text[SHARE] = rows[SHARE].map("{:.2f}×".format)
    text.insert(0, "experiment", rows["experiment"])
    text.insert(1, "chain", rows["chain"])
    return text


def progress(search: Search, done: int, left: float) -> None:
    """Print the front so far, the best trial and the time left."""
    show_front(search)
    best = search.winner()
    so_far = f"best {best.name}, {_cost(search, best)}" if best else "none within the limits yet"
    print(f"{done} trials, {so_far}; about {left / 60:.0f} min left", flush=True)


def write(search: Search) -> list[Path]:
    """Write searches/NAME.csv with all trials and searches/NAME.html with a front to point at; return their paths."""
    rows = table_of(search.results())
    paths = [search.path.with_suffix(".csv"), search.path.with_suffix(".html")]
    plain = rows.copy()
    for name in (str(name) for name in rows if str(name).endswith("_interval")):
        ends = [name.replace("_interval", end) for end in ("_low", "_high")]
        plain[ends] = plain.pop(name).tolist()
    files.write_bytes(paths[0], plain.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
    files.write_bytes(paths[1], _page(search, rows).encode())
    return paths


def _page(search: Search, rows: pd.DataFrame) -> str:
    cost = COSTS[search.goal.minimize]
    costs = {result.name: result.cost for result in search.results()}
    drawn = rows.assign(**{cost: rows["experiment"].map(costs)}) if costs else rows
    known = {SHARE: 1.0, **search.teacher}
    if cost in known:  # what it takes as C is not known
        taken = {name: known[name] for name in ("size_bytes", cost)}
        drawn = pd.concat([pd.DataFrame([{"experiment": TEACHER, **taken, **_validation(search.teacher)}]), drawn])
    sheet, on_line = pd.DataFrame(), search.front()
    if not rows.empty:
        on_front = table_of(on_line)
        values = on_front[[name for name in on_front if name in search.space.parameters]]
        sheet = _text(on_front).join(values.map(_plain)).set_index("experiment")
    chart = ""
    if len(drawn):
        names = [result.name for result in on_line]
        drawn = drawn.set_index("experiment")
        chart = front.drawing(drawn, target=TEACHER, names=False, cost=cost, front=names)
    body = (
        f"<h1>{html.escape(search.name)}: {len(rows)} trials</h1><p>{html.escape(limits(search))}. All figures are of "
        f'validation images.</p><section class="card">{chart}'
        "<figcaption>On the line: trials that are better than every cheaper one by more than chance. Bars are 95 % "
        "intervals, the teacher's is shaded. Point at one for its figures.</figcaption></section>"
        f"<details open><summary>The front</summary>{page.html_table(sheet, 'experiment')}"
        f"<figcaption>{LEGEND}.</figcaption></details>"
    )
    return page.document(f"lowenergy search: {search.name}", body)


def _plain(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)


def limits(search: Search) -> str:
    """The goal in words."""
    goal = search.goal
    parts = [f"{search.target}: least {goal.minimize}"]
    if goal.max_loss is not None:
        parts.append(f"at most {_in_words(goal.max_loss)} lost")
    parts += [
        f"at most {limit:,} {what}"
        for limit, what in (
            (goal.max_bytes, "bytes"),
            (goal.max_macs, "MACs"),
            (goal.max_flash, "bytes of flash"),
            (goal.max_ram, "bytes of RAM"),
        )
        if limit
    ]
    return ", ".join(parts)


def _in_words(limit: Limit) -> str:
    return (
        f"{100 * limit.amount:g} % of the teacher's figure" if limit.relative else f"{limit.amount:g} (points, or FID)"
    )


def _cost(search: Search, result: Result) -> str:
    if search.goal.minimize == "latency":
        return f"{result.cost:.2f} of the teacher's time"
    unit = {"flash": "bytes of flash", "ram": "bytes of RAM"}.get(search.goal.minimize, search.goal.minimize)
    return f"{result.cost:,.0f} {unit}"


def end(search: Search, experiment: str, card: Mapping[str, Any] | None) -> None:
    """Write and print the outcome: the front, up to five failures, the winner, its test figures, how to apply it.

    If nothing met the limits, the nearest trials take the winner's place.

    Args:
        experiment: the one that has all of the winner's outputs.
        card: the winner's, with test figures that nobody has looked at before; None: nothing met the limits.
    """
    show_front(search)
    for path in write(search):
        print(path)
    for name, why in list(search.failures().items())[:5]:
        print(f"{name}: {why}")
    best = search.winner()
    if best is None or card is None:
        print(f"No trial kept the limits ({limits(search)}).", *too_few(search.goal, search.teacher), "The nearest:")
        for result in search.nearest():
            print(f"  {result.name}  {result.chain}  {_cost(search, result)}  {_figures(result.figures['validation'])}")
        return
    own, theirs = (_figures(figures["validation"]) for figures in (best.figures, search.teacher))
    print(f"Take {best.name}: {best.chain}, {_cost(search, best)}")
    print(f"On the validation images: {own}, the teacher {theirs}")
    tested, of_teacher = _figures(card), _figures(search.teacher)
    print(f"On the test images, looked at once: {tested}, the teacher {of_teacher}")
    print(f"  dvc exp apply {experiment}")


def _figures(card: Mapping[str, Any]) -> str:
    """The qualities of one split as text, each with its interval, marked if it cannot be told from the teacher's."""
    figures = dict(leaves(card))
    told = []
    for name in (name for name in QUALITIES if name in figures):
        interval = f" ({ends})" if (ends := between(figures, name)) else ""
        mark = f"{ALIKE} " if alike(figures, name) else ""
        told.append(f"{HEADS.get(name, name)} {mark}{FORMATS[name].format(figures[name])}{interval}")
    return ", ".join(told)
