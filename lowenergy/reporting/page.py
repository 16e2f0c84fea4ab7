"""From metrics, curves and pictures on disk to one HTML page that opens offline, and one CSV for DVC's plots.

The first screen answers which model to take; everything else is folded below it.
"""

import base64
import html
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from lowenergy.base import files
from lowenergy.base.figures import axes as new_axes
from lowenergy.reporting import front
from lowenergy.reporting.tables import FIRST, HEADS, TITLES, collect, front_of, shown


def write(targets: list[str], chain: Callable[[str], str], root: Path = Path()) -> None:
    """Write plots/pareto.csv and report.html.

    Args:
        chain: branch -> how it came about, to call it by.
    """
    table = collect(targets, root)
    pareto = table.reindex(columns=["target", "branch", "size_bytes", *QUALITIES]).rename(columns=QUALITIES)
    files.write_bytes(root / "plots" / "pareto.csv", pareto.to_csv(index=False).encode())
    files.write_bytes(root / "report.html", _page(table, targets, chain, root).encode())


QUALITIES = {  # and what they are called where a dot would part a name
    "validation.accuracy": "validation_accuracy",
    "accuracy": "accuracy",
    "validation.fid": "validation_fid",
    "fid": "fid",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #6b7280; --line: #d5d9df; --card: #fff; --page: #f4f5f7;
  --on: #0b6bcb; --off: #9aa3af }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3af; --line: #3a414b; --card: #1c2128;
  --page: #13171c; --on: #5eb0ff; --off: #7b8593 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
  max-width: 84rem; padding: 1rem 1.5rem 3rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 0 0 .4rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
p { margin: .3rem 0 1rem; color: var(--soft); max-width: 60rem }
.answers { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)) }
.card, details { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .8rem 1rem; min-width: 0 }
details { margin-top: 1rem } summary { cursor: pointer; font-weight: 600 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; width: 100% }
th, td { padding: .2rem .4rem; text-align: right; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 500 } th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere }
.answers table { font-size: 12.5px } .answers th, .answers td { padding: .2rem .25rem }
.answers td { white-space: nowrap }
.front { width: 100%; font: 11px system-ui, sans-serif } .front text { fill: var(--soft) }
.front .rule { stroke: var(--line); stroke-width: .6 }
.front polyline { fill: none; stroke: var(--on); stroke-width: 1.5 }
.front .on circle { fill: var(--on) } .front .off circle { fill: var(--off) } .front g text { fill: var(--ink) }
.front g:hover circle { stroke: var(--ink); stroke-width: 2 } .front g:hover text { font-weight: 700 }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top; max-width: 100% }
figcaption { font-size: 13px; color: var(--soft) }
.plot { background: #fff; max-width: 100%; height: auto; border-radius: .3rem }
.grid { image-rendering: pixelated; width: 20rem; max-width: 100% }
"""


def _page(table: pd.DataFrame, targets: list[str], chain: Callable[[str], str], root: Path) -> str:
    named = {
        target: table[table.target == target].drop(columns="target").set_index("branch").rename(index=chain)
        for target in targets
    }
    parts = ["<h1>Which model should I take?</h1>", _scorer(root), '<div class="answers">']
    parts += [_answer(target, rows) for target, rows in named.items()]
    parts.append("</div>")
    for target, rows in named.items():
        branches = list(table[table.target == target].branch)
        details = [
            html_table(shown(rows).T),
            _samples(target, branches, root),
            _confusion(target, root),
            _sensitivity(target, root),
            _bearing(target, root),
            _curves(target, branches, root),
        ]
        title = f"{TITLES.get(target, target)}: all figures, pictures, curves"
        parts.append(f"<details><summary>{title}</summary>{''.join(details)}</details>")
    body = "\n".join(part for part in parts if part)
    return document("lowenergy report", body)


def document(title: str, body: str) -> str:
    """A page in this project's looks that needs nothing from elsewhere."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<style>{STYLE}</style>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _answer(target: str, rows: pd.DataFrame) -> str:
    """One target's chart, and below it the models worth taking, best quality first."""
    best = front_of(rows)[::-1]
    columns = [name for name in FIRST if name in best and name not in ("parameters", "macs")]
    table = html_table(shown(best[columns]).rename(columns=HEADS), "take")
    return (
        f'<section class="card"><h2>{TITLES.get(target, target)}</h2>{front.drawing(rows)}{table}'
        "<figcaption>On the line: models that no smaller one matches, by validation figures. Point at one for all of "
        "its figures.</figcaption>"
        "</section>"
    )


def html_table(table: pd.DataFrame, corner: str = "") -> str:
    """Rows by their index, whose column is called `corner`."""
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in (corner, *table.columns))
    body = "".join(
        f"<tr><td>{html.escape(str(branch))}</td>{''.join(f'<td>{html.escape(str(v))}</td>' for v in row)}</tr>"
        for branch, row in zip(table.index, table.to_numpy(), strict=True)
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _scorer(root: Path) -> str:
    path = root / "metrics" / "scorer.json"
    if not path.exists():
        return ""
    m = json.loads(path.read_text())
    real, noise = m["test_images"], m["uniform_noise"]
    return (
        f"<p>FID and Inception Score look through a scorer with {m['accuracy']:.2%} test accuracy. On its scale, real "
        f"test images have FID {real['fid']:.2f} and IS {real['inception_score']:.2f}, uniform noise "
        f"{noise['fid']:.1f} and {noise['inception_score']:.2f}. {_chosen_by(m)}</p>"
    )


def _chosen_by(scorer: dict[str, Any]) -> str:
    if "validation" not in scorer:
        return ""
    return (
        "Models are chosen by their validation figures: of images held out from training, and of samples other than "
        f"those tested, whose FID is against them (that of real test images: {scorer['validation']['fid']:.2f})."
    )


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _image(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img class="grid" alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


PICTURES = {  # of the teacher, besides its samples
    "strip.png": "from noise to samples, Langevin steps evenly spaced",
    "neighbours.png": "samples and, below each, the training image nearest to it",
    "classes.png": "what the samples show, by the scorer",
    "energies.png": "energies of data and of what is not data",
}


def _samples(target: str, branches: list[str], root: Path) -> str:
    of_target = root / "plots" / "branches" / target
    samples = {f"{branch}: samples": of_target / branch / "samples.png" for branch in branches}
    more = {caption: of_target / "teacher" / name for name, caption in PICTURES.items()}
    parts = []
    for title, pictures in (("Samples", samples), ("The teacher's samples and energies", more)):
        found = [_image(path, caption) for caption, path in pictures.items() if path.exists()]
        parts += [f"<h3>{title}</h3>", *found] if found else []
    return "".join(parts)


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})  # the same page from the same figures
    text = out.getvalue()
    return text[text.index("<svg") :].replace("<svg", '<svg class="plot"', 1)


def _confusion(target: str, root: Path) -> str:
    path = root / "plots" / "branches" / target / "teacher" / "confusion.csv"
    if not path.exists():
        return ""
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    classes = list(dict.fromkeys(sorted(set(rows.actual) | set(rows.predicted))))
    counts = pd.crosstab(rows.actual, rows.predicted).reindex(index=classes, columns=classes, fill_value=0)
    figure, axes = new_axes(3.6, 3.4)
    axes.grid(False)
    axes.imshow(counts.to_numpy(), cmap="Blues")
    axes.set(xlabel="predicted", ylabel="actual")
    if len(classes) <= 20:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
        middle = counts.to_numpy().max() / 2
        for (i, j), count in ((ij, counts.iat[ij]) for ij in _cells(len(classes)) if counts.iat[ij]):
            axes.text(j, i, count, ha="center", va="center", fontsize=7, color="white" if count > middle else "black")
    return "<h3>Confusion of the teacher</h3>" + _figure(_svg(figure), f"{len(rows)} test images")


def _cells(n: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(n) for j in range(n)]


def _sensitivity(target: str, root: Path) -> str:
    path = root / "plots" / "curves" / target / "quantize" / "sensitivity.csv"
    if not path.exists():
        return ""
    table = pd.read_csv(path)
    figure, axes = new_axes(6.0, 0.25 * len(table) + 0.8)
    colors = ["C0" if rounded else "C1" for rounded in table["int8"]]
    axes.barh(table["layer"], table["added_loss"], color=colors)
    axes.invert_yaxis()
    axes.set_xlabel("added to the matching loss (orange: kept float)")
    axes.locator_params(axis="x", nbins=5)
    return "<h3>What rounding each layer alone costs</h3>" + _figure(_svg(figure), "quantize")


def _bearing(target: str, root: Path) -> str:
    path = root / "plots" / "curves" / target / "prune" / "sensitivity.csv"
    if not path.exists():
        return ""
    table = pd.read_csv(path)
    figure, axes = new_axes(6.0, 3.4)
    for i, (layer, rows) in enumerate(table.groupby("layer", sort=False)):
        style = ("-", "--", ":")[i // 10 % 3]
        axes.plot(rows["amount"], rows["added_loss"], style, lw=1.2, label=layer)
    axes.set(xlabel="fraction of the layer pruned", ylabel="added to the matching loss", yscale="symlog")
    axes.legend(fontsize=6, ncols=2)
    return "<h3>What pruning each layer alone costs</h3>" + _figure(_svg(figure), "prune")


def _curves(target: str, branches: list[str], root: Path) -> str:
    figures = []
    of_target = root / "plots" / "curves" / target
    runs = [path.parent.parent for branch in branches for path in sorted((of_target / branch).rglob("plots/metrics"))]
    for run in runs:
        series = sorted((run / "plots" / "metrics").glob("*.tsv"))
        figure, axes = new_axes(3.4, 2.4)
        for path in series:
            curve = pd.read_csv(path, sep="\t")
            axes.plot(curve["step"], curve[path.stem], lw=1.2, label=path.stem)
        axes.set(xlabel="step")
        axes.legend(fontsize=7)
        figures.append(_figure(_svg(figure), str(run.relative_to(of_target))))
    return "<h3>Training curves</h3>" + "".join(figures) if figures else ""
