"""From metrics, curves and grids on disk to one table, one CSV for DVC's plots, one HTML page that opens offline."""

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
from lowenergy.base.params import BRANCHES

TITLES = {
    "classifier": "Classifier",
    "ebm": "Energy-based model (EBM)",
    "jem": "Joint energy model (JEM)",
}
QUALITY = {"classifier": "accuracy", "ebm": "fid", "jem": "fid"}  # what the size is paid with
FORMATS = {
    "accuracy": "{:.2%}",
    "nll": "{:.3f}",
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


def collect(targets: list[str], root: Path = Path()) -> pd.DataFrame:
    """metrics/<target>/<branch>.json of these targets, flattened: one row per model, figures it lacks are NaN."""
    rows = []
    for target in targets:
        for branch in BRANCHES:
            path = root / "metrics" / target / f"{branch}.json"
            if path.exists():
                figures = pd.json_normalize(json.loads(path.read_text())).iloc[0].to_dict()
                rows.append({"target": target, "branch": branch, **figures})
    if not rows:
        raise files.FileError("metrics/: no figures of these targets; `dvc repro` makes them")
    order = [name for name in FORMATS if any(name in row for row in rows)]
    return pd.DataFrame(rows, columns=["target", "branch", *order])


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The figures of one target as text, columns that it lacks left out."""
    figures = table.dropna(axis="columns", how="all")
    return figures.apply(
        lambda column: (
            column.map(FORMATS[str(column.name)].format, na_action="ignore").fillna("")
            if str(column.name) in FORMATS
            else column
        )
    )


def write(targets: list[str], chain: Callable[[str], str], root: Path = Path()) -> None:
    """Write plots/pareto.csv and report.html.

    Args:
        chain: branch -> how it came about, to call it by.
    """
    table = collect(targets, root)
    for quality in ("accuracy", "fid"):
        if quality not in table:
            table[quality] = float("nan")
    pareto = table[["target", "branch", "size_bytes", "accuracy", "fid"]]
    files.write_bytes(root / "plots" / "pareto.csv", pareto.to_csv(index=False).encode())
    files.write_bytes(root / "report.html", _page(table, targets, chain, root).encode())


# -- the page ---------------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { margin-bottom: 0 } h2 { border-bottom: 1px solid var(--line); margin-top: 2.5rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--soft); white-space: nowrap }
th:first-child, td:first-child { text-align: left }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top }
figcaption { font-size: 13px; opacity: .75 } .plot { background: #fff; max-width: 100% }
.grid { image-rendering: pixelated; width: 20rem }
"""


def _page(table: pd.DataFrame, targets: list[str], chain: Callable[[str], str], root: Path) -> str:
    parts = [
        "<h1>lowenergy</h1>",
        "<p>What compression costs: every model measured by the file it is stored in.</p>",
        _scorer(root),
    ]
    for target in targets:
        rows = table[table.target == target].drop(columns="target").set_index("branch")
        parts.append(f"<h2>{TITLES[target]}</h2>")
        named = rows.rename(index=chain)
        parts.append(f'<div class="scroll">{_html_table(shown(named))}</div>')
        parts.append(_figure(_pareto(named, QUALITY[target]), "size against quality; the line is the Pareto front"))
        parts.append(_samples(target, list(rows.index), root))
        parts.append(_confusion(target, root))
        parts.append(_sensitivity(target, root))
        parts.append(_bearing(target, root))
        parts.append(_curves(target, list(rows.index), root))
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>lowenergy report</title>\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<style>{STYLE}</style>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html_table(table: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(c)).replace('.', '.<wbr>')}</th>" for c in ("branch", *table.columns))
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
        f"{noise['fid']:.1f} and {noise['inception_score']:.2f}.</p>"
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


def pareto_front(sizes: list[float], losses: list[float]) -> list[int]:
    """Indices, by growing size, of the models that no smaller or equal-sized model matches in loss."""
    best, front = float("inf"), []
    for i in sorted(range(len(sizes)), key=lambda i: (sizes[i], losses[i])):
        if losses[i] < best:
            best = losses[i]
            front.append(i)
    return front


def _pareto(rows: pd.DataFrame, quality: str) -> str:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    figure, axes = new_axes()
    sizes, values = rows["size_bytes"].tolist(), rows[quality].tolist()
    front = pareto_front(sizes, [-v if quality == "accuracy" else v for v in values])
    axes.plot([sizes[i] for i in front], [values[i] for i in front], color="tab:gray", lw=1, zorder=1)
    for branch, size, value in zip(rows.index, sizes, values, strict=True):
        axes.scatter(size, value, s=36, zorder=2)
        axes.annotate(branch, (size, value), textcoords="offset points", xytext=(6, 5))
    axes.set(
        xscale="log",
        xlabel="bytes on disk",
        ylabel=f"{quality} ({'higher' if quality == 'accuracy' else 'lower'} is better)",
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(EngFormatter("B", sep=" "))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.25)
    return _svg(figure)


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
