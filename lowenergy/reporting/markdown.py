"""What a pull request should say, as Markdown: figures that changed, what to take, pictures."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from lowenergy.base import files
from lowenergy.reporting.tables import FIRST, FORMATS, HEADS, TITLES, collect, front_of, shown

PICTURE = "samples.png"


def text(targets: list[str], chain: Callable[[str], str], base: str, root: Path = Path()) -> str:
    """The figures of the workspace, against those of a revision.

    Args:
        chain: branch -> how it came about, to call it by.
        base: what git calls the revision: main, HEAD~1, a tag, an experiment.
    Raises:
        FileError: no figures here, or no such revision.
    """
    table = collect(targets, root)
    known = subprocess.run(["git", "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"], cwd=root)
    if known.returncode:
        raise files.FileError(f"--base {base}: git knows no such revision; in CI, fetch it first")
    parts = ["## Compressed models", *_changes(table, base, root)]
    for target, rows in table.groupby("target", sort=False):
        named = rows.drop(columns="target").set_index("branch").rename(index=chain)
        best = front_of(named)[::-1]
        columns = [name for name in FIRST if name in best]
        parts += [f"### {TITLES.get(str(target), str(target))}: which to take", ""]
        parts += [_rows(shown(best[columns]).rename(columns=HEADS), "model"), ""]
        parts += _pictures(str(target), list(rows["branch"]), root)
    return "\n".join(parts)


def _changes(table: pd.DataFrame, base: str, root: Path) -> list[str]:
    """A table of the figures one decides by that differ from the base's, old and new."""
    rows = []
    for _, row in table.iterrows():
        before = _before(f"metrics/{row['target']}/{row['branch']}.card.json", base, root)
        for name in FIRST:
            new, old = row.get(name), before.get(name)
            if pd.isna(new) or old == new:
                continue
            was, now = ("none" if value is None else FORMATS[name].format(value) for value in (old, new))
            if was != now:
                model = f"{row['target']} {row['branch']}"
                rows.append({"model": model, "figure": HEADS.get(name, name), base: was, "now": now})
    if not rows:
        return [f"No figure differs from {base}'s.", ""]
    return [f"Changed against {base}:", "", _rows(pd.DataFrame(rows).set_index("model"), "model"), ""]


def _before(path: str, base: str, root: Path) -> dict[str, Any]:
    """A card as the base has it, flattened; {} where it has none."""
    done = subprocess.run(["git", "show", f"{base}:./{path}"], cwd=root, capture_output=True, text=True)
    if done.returncode:
        return {}
    return {str(name): value for name, value in pd.json_normalize(json.loads(done.stdout)).iloc[0].items()}


def _rows(table: pd.DataFrame, corner: str) -> str:
    head = [corner, *map(str, table.columns)]
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * len(table.columns)}"]
    lines += [
        f"| {' | '.join([str(name), *map(str, row)])} |"
        for name, row in zip(table.index, table.to_numpy(), strict=True)
    ]
    return "\n".join(lines)


def _pictures(target: str, branches: list[str], root: Path) -> list[str]:
    places = {branch: f"plots/branches/{target}/{branch}/{PICTURE}" for branch in branches}
    found = [f"![{target} {branch}]({place})" for branch, place in places.items() if (root / place).exists()]
    return ["Samples: " + " ".join(found), ""] if found else []
