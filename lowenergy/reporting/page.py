"""Turn the cards, curves and pictures on disk into one HTML page that opens offline, and one CSV for DVC's plots.

The first screen answers which model to take; everything else is folded below it.
"""

import base64
import html
import io
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from lowenergy.base import cards, files
from lowenergy.base.figures import GAP, plain
from lowenergy.base.figures import axes as new_axes
from lowenergy.params import Params
from lowenergy.reporting import front
from lowenergy.reporting.tables import (
    HEADS,
    LEGEND,
    alike,
    between,
    collect,
    front_of,
    quality_of,
    shown,
    title_of,
    to_take,
)

FEW = 20  # classes; a picture that has more does not name them, and a list names no more


def write(p: Params, root: Path = Path()) -> None:
    """Write plots/pareto.csv and report.html."""
    table = collect(p, root)
    pareto = table.reindex(columns=["target", "model", "chain", "size_bytes", *QUALITIES]).rename(columns=QUALITIES)
    files.write_bytes(root / "plots" / "pareto.csv", pareto.to_csv(index=False).encode())
    files.write_bytes(root / "report.html", _page(table, p, root).encode())


QUALITIES = {  # and their names in the CSV, where a dot would split them
    "validation.accuracy": "validation_accuracy",
    "accuracy": "accuracy",
    "validation.fid": "validation_fid",
    "fid": "fid",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #6b7280; --line: #d5d9df; --card: #fff; --page: #f4f5f7;
  --on: #0b6bcb; --off: #9aa3af; --lost: #b42318; --won: #18794e }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3af; --line: #3a414b; --card: #1c2128;
  --page: #13171c; --on: #5eb0ff; --off: #7b8593; --lost: #ff9a8f; --won: #6cd3a0 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
  max-width: 84rem; padding: 1rem clamp(.6rem, 3vw, 1.5rem) 3rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 0 0 .4rem }
h1, h2, h3, p, figcaption, th { overflow-wrap: anywhere }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
p { margin: .3rem 0 1rem; color: var(--soft); max-width: 60rem } .advice { color: var(--ink); margin-bottom: .6rem }
.answers { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)) }
.card, details { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .8rem 1rem; min-width: 0 }
details { margin-top: 1rem } summary { cursor: pointer; font-weight: 600 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; width: 100% }
th, td { padding: .2rem .4rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 500; vertical-align: bottom } th:first-child, td:first-child { text-align: left }
td { white-space: nowrap } td small { display: block; color: var(--soft); font-size: 10.5px; line-height: 1.25 }
.answers table { font-size: 12px } .answers td:first-child { white-space: normal; min-width: 4.6rem }
.answers th, .answers td { padding: .2rem .12rem }
.front { width: 100%; font: 11px system-ui, sans-serif } .front text { fill: var(--soft) }
.front .rule { stroke: var(--line); stroke-width: .6 } .front .band { fill: var(--on); opacity: .1 }
.front polyline { fill: none; stroke: var(--on); stroke-width: 1.5 }
.front .bar { stroke-width: 1.2; opacity: .6 }
.front .on .bar { stroke: var(--on) } .front .off .bar { stroke: var(--off) }
.front .on circle { fill: var(--on) } .front .off circle { fill: var(--off) } .front g text { fill: var(--ink) }
.front .off text { fill: var(--soft) }
.front g:hover circle { stroke: var(--ink); stroke-width: 2 } .front g:hover text { font-weight: 700 }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top; max-width: 100% }
figcaption { font-size: 13px; color: var(--soft) }
.plot { background: #fff; max-width: 100%; height: auto; border-radius: .3rem }
.grid { image-rendering: pixelated; width: 20rem; max-width: 100% }
.changed { display: flex; flex-wrap: wrap; gap: .5rem; margin: .3rem 0 .8rem }
.changed span { font-size: 11px; line-height: 1.25; text-align: center; color: var(--soft); max-width: 5rem }
.changed i { display: block; width: 44px; height: 44px; margin: 0 auto 2px; image-rendering: pixelated;
  background-image: var(--images); background-size: auto 100%; border-radius: 3px }
.changed b { display: block; font-weight: 500; color: var(--soft) }
.changed .lost b { color: var(--lost) } .changed .won b { color: var(--won) }
"""


def _page(table: pd.DataFrame, p: Params, root: Path) -> str:
    by_target = {
        str(target): rows.drop(columns="target").set_index("model").dropna(axis="columns", how="all")
        for target, rows in table.groupby("target", sort=False)
    }
    parts = ["<h1>Which model should I take?</h1>", _scorer(root), '<div class="answers">']
    parts += [_answer(title_of(p, target), target, rows) for target, rows in by_target.items()]
    parts.append("</div>")
    for target, rows in by_target.items():
        names = list(map(str, rows.index))
        figures = shown(rows)
        for name in figures:
            intervals = [between(row, str(name)) for row in rows.to_dict("records")]
            told = zip(figures[name], intervals, strict=True)
            figures[name] = [f"{said} ({interval})" if interval else said for said, interval in told]
        figures.insert(0, "made by", rows["chain"])
        details = [
            html_table(figures.T),
            _changes(names, root),
            _samples(target, names, root),
            _confusion(target, root),
            *(_sensitivity(name, root) for name in names),
            _curves(names, root),
        ]
        title = f"{html.escape(title_of(p, target))}: all figures, pictures, curves"
        parts.append(f"<details><summary>{title}</summary>{''.join(details)}</details>")
    body = "\n".join(part for part in parts if part)
    return document("lowenergy report", body)


def document(title: str, body: str) -> str:
    """A page in this project's style that loads nothing from elsewhere."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<style>{STYLE}</style>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _answer(title: str, target: str, rows: pd.DataFrame) -> str:
    """One target's chart, the model to take, and all models that are worth their bytes, largest first."""
    best = front_of(rows)[::-1]
    legend = f" {LEGEND}." if any(alike(row, quality_of(rows)) for row in best.to_dict("records")) else ""
    return (
        f'<section class="card"><h2>{html.escape(title)}</h2>{front.drawing(rows, target=target)}'
        f'<p class="advice">{_advice(rows)}</p>{_with_intervals(best)}'
        "<figcaption>On the line: models that are better than every smaller one by more than chance, by validation "
        f"figures. Bars are 95 % intervals, the teacher's is shaded. Point at a model for its figures.{legend}"
        "</figcaption></section>"
    )


def _advice(rows: pd.DataFrame) -> str:
    place = to_take(rows)
    if place is None:
        return "No branch is as good as its teacher; the table has what each costs."
    row = rows.iloc[place]
    names = [HEADS[name].removeprefix("val. ") for name in ("validation.accuracy", "validation.fid") if name in rows]
    qualities = " and ".join(names).replace("acc.", "accuracy")
    return (
        f"Take <b>{html.escape(str(row.name))}</b>: {row['size_bytes']:,.0f} bytes, {row['compression_ratio']:.1f} "
        f"times smaller than its teacher, and in validation {qualities} no worse as far as these images can tell."
    )


def _with_intervals(rows: pd.DataFrame) -> str:
    """A table with a row per model: its chain below its name, the ratio below its bytes, intervals below figures."""
    body = []
    text = shown(rows, everything=False)
    for name, row, told in zip(map(str, rows.index), rows.to_dict("records"), text.to_dict("records"), strict=True):
        cells = [(name, row["chain"])]
        cells.append((told.pop("size_bytes"), told.pop("compression_ratio")))
        cells += [(said, between(row, str(figure))) for figure, said in told.items()]
        inner = "".join(f"<td>{html.escape(a)}<small>{html.escape(b)}</small></td>" for a, b in cells)
        body.append(f"<tr>{inner}</tr>")
    figures = text.columns.drop(["size_bytes", "compression_ratio"])
    head = "".join(f"<th>{html.escape(HEADS.get(str(name), str(name)))}</th>" for name in ("", "size_bytes", *figures))
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>'


def html_table(table: pd.DataFrame, corner: str = "") -> str:
    """A table as HTML, with its index as the first column, headed `corner`."""
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in (corner, *table.columns))
    body = "".join(
        f"<tr><td>{html.escape(str(name))}</td>{''.join(f'<td>{html.escape(str(v))}</td>' for v in row)}</tr>"
        for name, row in zip(table.index, table.to_numpy(), strict=True)
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _scorer(root: Path) -> str:
    m: Any = cards.collect([cards.SCORER], root).get(cards.SCORER)
    if m is None:
        return ""
    real, noise = m["test_images"], m["uniform_noise"]
    return (
        f"<p>FID and Inception Score look through a scorer with {m['accuracy']:.2%} test accuracy. On its scale, real "
        f"test images have FID {real['fid']:.2f} and IS {real['inception_score']:.2f}, uniform noise "
        f"{noise['fid']:.1f} and {noise['inception_score']:.2f}. Models are chosen by their "
        "validation figures: of images held out from training, and of samples other than those tested, whose FID is "
        f"against them (that of real test images: {m['validation']['fid']:.2f}).</p>"
    )


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _data(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _image(path: Path, caption: str) -> str:
    return (
        f'<figure><img class="grid" alt="{html.escape(caption)}" src="{_data(path)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


PICTURES = {  # of the teacher, besides its samples
    "strip.png": "from noise to samples, Langevin steps evenly spaced",
    "neighbours.png": "samples and, below each, the training image nearest to it",
    "classes.png": "what the samples show, by the scorer",
    "energies.png": "energies of data and of what is not data",
}


def _of(name: str, root: Path) -> Path:
    """The folder with a model's pictures."""
    return root / "plots" / "models" / name


def _samples(target: str, names: list[str], root: Path) -> str:
    samples = {f"{name}: samples": _of(name, root) / "samples.png" for name in names}
    more = {caption: _of(target, root) / name for name, caption in PICTURES.items()}
    parts = []
    for title, pictures in (("Samples", samples), ("The teacher's samples and energies", more)):
        figures = [_image(path, caption) for caption, path in pictures.items() if path.exists()]
        parts += [f"<h3>{title}</h3>", *figures] if figures else []
    return "".join(parts)


def _answers(name: str, root: Path) -> pd.DataFrame | None:
    path = _of(name, root) / "confusion.csv"
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else None


def _changes(names: list[str], root: Path) -> str:
    parts = [part for name in names if (part := _changed(name, root))]
    if not parts:
        return ""
    return (
        "<h3>What compression changed</h3><p>Test images that get another answer than the teacher's. Beneath each is "
        "the teacher's answer, and below it the branch's: red where the teacher was right, green where the branch is."
        "</p>" + "".join(parts)
    )


def _changed(name: str, root: Path) -> str:
    """The test images that a branch answers differently from its teacher, and the classes that lost."""
    rows = _answers(name, root)
    if rows is None or "teacher" not in rows:
        return ""
    changed = rows[rows.predicted != rows.teacher]
    lost = changed[changed.teacher == changed.actual]
    won = changed[changed.predicted == changed.actual]
    net = lost.actual.value_counts().sub(won.actual.value_counts(), fill_value=0).astype(int)
    worst = net[net > 0].sort_values(ascending=False, kind="stable")[:FEW]
    told = ", ".join(f"{label} ({count} of {(rows.actual == label).sum()})" for label, count in worst.items())
    text = f"all {len(rows)} answers are the teacher's."
    if len(changed):
        text = f"{len(changed)} of {len(rows)} answers differ; {len(lost)} were right, {len(won)} are right now."
    text += f" Classes that lost: {told}." if told else ""
    picture = _of(name, root) / "changed.png"
    tiles = _tiles(picture, changed) if picture.exists() and len(changed) else ""
    return f"<p><b>{html.escape(name)}</b>: {html.escape(text)}</p>{tiles}"


def _tiles(picture: Path, changed: pd.DataFrame) -> str:
    """Each image of a picture that has them in one row, with the two answers beneath."""
    wide, high = (int.from_bytes(picture.read_bytes()[at : at + 4]) for at in (16, 20))  # where a PNG has them
    count = (wide - GAP) // (high - GAP)
    tiles = []
    for i, row in enumerate(changed.head(count).to_dict("records")):
        way = "lost" if row["teacher"] == row["actual"] else "won" if row["predicted"] == row["actual"] else ""
        tip = html.escape(f"{row['actual']}; the teacher says {row['teacher']}, this model {row['predicted']}")
        place = 100 * i / max(1, count - 1)
        tiles.append(
            f'<span class="{way}" title="{tip}"><i style="background-position:{place:.3f}% 0"></i>'
            f"{html.escape(row['teacher'])}<b>{html.escape(row['predicted'])}</b></span>"
        )
    return f'<div class="changed" style="--images:url({_data(picture)})">{"".join(tiles)}</div>'


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})  # the same figures give the same page
    text = out.getvalue()
    return text[text.index("<svg") :].replace("<svg", '<svg class="plot"', 1)


def _confusion(target: str, root: Path) -> str:
    rows = _answers(target, root)
    if rows is None:
        return ""
    classes = list(dict.fromkeys(sorted(set(rows.actual) | set(rows.predicted))))
    counts = pd.crosstab(rows.actual, rows.predicted).reindex(index=classes, columns=classes, fill_value=0)
    figure, axes = new_axes(3.6, 3.4)
    axes.grid(False)
    axes.imshow(counts.to_numpy(), cmap="Blues")
    axes.set(xlabel="predicted", ylabel="actual")
    if len(classes) <= FEW:
        names = [plain(name) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        middle = counts.to_numpy().max() / 2
        for i, j in product(range(len(classes)), range(len(classes))):
            if not (count := counts.iat[i, j]):
                continue
            axes.text(j, i, count, ha="center", va="center", fontsize=7, color="white" if count > middle else "black")
    return "<h3>Confusion of the teacher</h3>" + _figure(_svg(figure), f"{len(rows)} test images")


def _sensitivity(name: str, root: Path) -> str:
    """A chart of what rounding or pruning each layer alone costs, if a method has measured that."""
    path = root / "plots" / "curves" / name / "sensitivity.csv"
    if not path.exists():
        return ""
    table = pd.read_csv(path)
    if "amount" in table:
        figure, axes = new_axes(6.0, 3.4)
        for i, (layer, rows) in enumerate(table.groupby("layer", sort=False)):
            style = ("-", "--", ":")[i // 10 % 3]
            axes.plot(rows["amount"], rows["added_loss"], style, lw=1.2, label=plain(str(layer)))
        axes.set(xlabel="fraction of the layer pruned", ylabel="added to the matching loss", yscale="symlog")
        axes.legend(fontsize=6, ncols=2)
        what = "pruning"
    elif "int8" in table:
        figure, axes = new_axes(6.0, 0.25 * len(table) + 0.8)
        colors = ["C0" if rounded else "C1" for rounded in table["int8"]]
        axes.barh(table["layer"].astype(str).map(plain), table["added_loss"], color=colors)
        axes.invert_yaxis()
        axes.set_xlabel("added to the matching loss (orange: kept float)")
        axes.locator_params(axis="x", nbins=5)
        what = "rounding"
    else:
        return ""
    return f"<h3>What {what} each layer alone costs</h3>" + _figure(_svg(figure), name)


def _curves(names: list[str], root: Path) -> str:
    figures = []
    folder = root / "plots" / "curves"
    runs = [path.parent.parent for name in names for path in sorted((folder / name).rglob("plots/metrics"))]
    for run in runs:
        series = sorted((run / "plots" / "metrics").glob("*.tsv"))
        figure, axes = new_axes(3.4, 2.4)
        for path in series:
            curve = pd.read_csv(path, sep="\t")
            axes.plot(curve["step"], curve[path.stem], lw=1.2, label=path.stem)
        axes.set(xlabel="step")
        axes.legend(fontsize=7)
        figures.append(_figure(_svg(figure), str(run.relative_to(folder))))
    return "<h3>Training curves</h3>" + "".join(figures) if figures else ""
