"""What a pull request should say, as Markdown: figures that changed, which models to take, pictures."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd

from lowenergy.base import cards, files
from lowenergy.base.nested import leaves
from lowenergy.params import Params
from lowenergy.reporting.tables import ALIKE, FIRST, FORMATS, HEADS, LEGEND, collect, front_of, shown, title_of

PICTURE = "samples.png"


def text(p: Params, base: str, root: Path = Path()) -> str:
    """The figures of the workspace, compared with those of a revision.

    Args:
        base: the revision as git knows it: main, HEAD~1, a tag, an experiment.
    Raises:
        FileError: there are no figures here, or no such revision.
    """
    table = collect(p, root)
    revision = ["git", "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"]
    known = subprocess.run(revision, cwd=root, capture_output=True)  # it prints the commit, and we print the comment
    if known.returncode:
        raise files.FileError(f"--base {base}: git knows no such revision; in CI, fetch it first")
    parts = ["## Compressed models", *_changes(table, base, root)]
    for target, rows in table.groupby("target", sort=False):
        best = front_of(rows.set_index("model"))[::-1]
        figures = shown(best, everything=False)
        figures.insert(0, "made by", best["chain"])
        rendered = _rows(figures.rename(columns=HEADS), "model")
        parts += [f"### {title_of(p, str(target))}: which to take", "", rendered, ""]
        parts += [f"{LEGEND}.", ""] if ALIKE in rendered else []
        parts += _pictures(list(rows["model"]), root)
    for remark in cards.remarks(list(p.models), root):
        parts += [f"{remark[0].upper()}{remark[1:]}.", ""]
    return "\n".join(parts)


def _changes(table: pd.DataFrame, base: str, root: Path) -> list[str]:
    """A table, old and new, of those figures one decides by that differ from the base's."""
    before = _before(base, root)
    rows = []
    for _, row in table.iterrows():
        old_figures = before.get(row["model"], {})
        for name in FIRST:
            new, old = row.get(name), old_figures.get(name)
            if pd.isna(new) or old == new:
                continue
            was, now = ("none" if value is None else FORMATS[name].format(value) for value in (old, new))
            if was != now:
                rows.append({"model": row["model"], "figure": HEADS.get(name, name), base: was, "now": now})
    if not rows:
        return [f"No figure differs from {base}'s.", ""]
    return [f"Changed against {base}:", "", _rows(pd.DataFrame(rows).set_index("model"), "model"), ""]


def _before(base: str, root: Path) -> dict[str, dict[str, Any]]:
    """The base's cards, flattened, by model; {} if it has none."""
    done = subprocess.run(["git", "show", f"{base}:./{cards.ALL}"], cwd=root, capture_output=True, text=True)
    known = json.loads(done.stdout) if done.returncode == 0 else {}
    return {name: dict(leaves(card)) for name, card in known.items()}


def _rows(table: pd.DataFrame, corner: str) -> str:
    head = [corner, *map(str, table.columns)]
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * len(table.columns)}"]
    lines += [
        f"| {' | '.join([str(name), *map(str, row)])} |"
        for name, row in zip(table.index, table.to_numpy(), strict=True)
    ]
    return "\n".join(lines)


def _pictures(names: list[str], root: Path) -> list[str]:
    places = {name: f"plots/models/{name}/{PICTURE}" for name in names}
    images = [f"![{name}]({place})" for name, place in places.items() if (root / place).exists()]
    return ["Samples: " + " ".join(images), ""] if images else []
