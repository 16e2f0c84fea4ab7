"""Turn `dvc exp show` into one table of all cells of a sweep, and two charts: quality by amount pruned and by ratio."""

import io
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lowenergy.base import files
from lowenergy.base.errors import UserError, one_line
from lowenergy.base.figures import axes as new_axes
from lowenergy.base.figures import plain
from lowenergy.base.nested import leaves
from lowenergy.reporting.revisions import Revision
from lowenergy.reporting.tables import FORMATS, is_fid, quality_of

TEACHER = "teacher"  # in place of its chain

TITLES = {"accuracy": "accuracy", "nll": "negative log-likelihood", "fid": "FID", "inception_score": "Inception Score"}
SETTINGS = (  # parameters that tell cells apart, kept wherever they occur; others are kept if they differ
    "prune.kind",
    "prune.scope",
    "prune.amount",
    "prune.finetune.epochs",
    "prune.retrain.epochs",
    "distill.student.name",
    "distill.student.width",
    "quantize.weight_bits",
    "quantize.finetune.epochs",
    "quantize.retrain.epochs",
    "pq.finetune.epochs",
    "pq.retrain.epochs",
)
OF_PRUNED = ("prune.kind", "prune.scope", "prune.amount")
NUMBERS = ("prune.amount", "prune.finetune.epochs", "prune.retrain.epochs")


class SweepError(UserError):
    """There is nothing to draw; the message says what to run."""


def shown(*options: str) -> list[dict[str, Any]]:
    """What `dvc exp show` knows about the current commit and its experiments, or with option -A, about all commits."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SweepError(f"`dvc exp show` failed: {done.stderr.strip()}")
    revisions: list[dict[str, Any]] = json.loads(done.stdout)
    return revisions


def unfinished(revisions: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The names of the experiments without figures, by state: failed, queued or running."""
    states: dict[str, list[str]] = {}
    for revision in revisions:
        for experiment in revision["experiments"] or []:
            state = (experiment["executor"] or {}).get("state", "success")
            if state != "success":
                states.setdefault(str(state), []).append(_name(experiment, experiment["revs"][0]))
    return states


def collect(revisions: Iterable[Mapping[str, Any]], target: str) -> pd.DataFrame:
    """One row per model of this target, its teacher included: chain, parameters that tell models apart, and figures.

    A model that several experiments share, because none of them changed it, is one row.
    """
    rows = []
    for name, commit in _finished(revisions):
        for model in Revision(commit).models(target):
            chain = " → ".join(model.methods) or TEACHER
            values = {key: _text(value) for key, value in model.values.items()}
            figures = {key: value for key, value in leaves(model.card) if key in FORMATS}
            rows.append({"experiment": name, "target": target, "model": model.name, "chain": chain} | values | figures)
    if not rows:
        raise SweepError(f"no experiment has figures of {target}; queue some with `dvc exp run --queue -S ...`")
    table = pd.DataFrame(rows)
    of_params = [str(column) for column in table if column not in FORMATS][4:]
    dull = [column for column in of_params if column not in SETTINGS and not _differs(table, column)]
    table = table.drop(columns=dull)
    table = table.drop_duplicates(subset=[column for column in table if column != "experiment"])
    return table.sort_values(["chain", *(column for column in of_params if column not in dull)], ignore_index=True)


def _finished(revisions: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    """The names and commits of the revisions and experiments that were run."""
    for revision in revisions:
        if revision["rev"] != "workspace" and revision["data"]:
            yield _name(revision, revision), revision["rev"]
        for experiment in revision["experiments"] or []:
            if (experiment["executor"] or {}).get("state", "success") == "success":
                for rev in experiment["revs"][:1]:  # the newest; the others are checkpoints of a resumed experiment
                    if rev["data"]:
                        yield _name(experiment, rev), rev["rev"]


def _name(experiment: Mapping[str, Any], rev: Mapping[str, Any]) -> str:
    return str(experiment["name"] or rev["rev"][:7])


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)  # a range's third tenth is 0.30000000000000004


def _method(chain: str) -> str:
    """The last method of a chain; TEACHER for the teacher, whose chain has none."""
    return chain.rpartition(" → ")[2]


def _differs(table: pd.DataFrame, column: str) -> bool:
    return any(rows[column].nunique(dropna=True) > 1 for _, rows in table.groupby("chain"))


def read(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Read kept tables into one, each below the one before.

    Raises:
        SweepError: one of the files is no such table.
    """
    return pd.concat([_read(path) for path in paths], ignore_index=True)


def _read(path: str | Path) -> pd.DataFrame:
    advice = "give one that `lowenergy sweep-plot` wrote"
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys((*SETTINGS, "target", "chain"), str))
        for column in table.columns.intersection(["compression_ratio", *NUMBERS]):
            pd.to_numeric(table[column])
    except ValueError as error:  # also for an empty file, or bytes that are not text
        raise SweepError(f"{path}: no table of a sweep: {one_line(error)}; {advice}") from None
    if not len(table):
        raise SweepError(f"{path}: no table of a sweep: it has no rows; {advice}")
    lacking = _lacking(table, ("target", "chain", "compression_ratio"))
    lacking = lacking or _lacking(table[table["chain"].map(_method) == "prune"], OF_PRUNED)
    if lacking:
        raise SweepError(f"{path}: no table of a sweep: it lacks {lacking[0]}; {advice}")
    return table


def _lacking(rows: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    return [column for column in columns if len(rows) and (column not in rows or rows[column].isna().any())]


def write(table: pd.DataFrame, quality: str | None, directory: Path) -> list[Path]:
    """Write <target>.csv, the chart <target>-ratio.svg and, if any model was pruned last, <target>-amount.svg.

    Args:
        quality: the figure to draw; None for the one that the report draws.
    Raises:
        SweepError: the table has no such figure.
    Returns:
        The paths that were written.
    """
    target = str(table["target"].iloc[0])
    quality = quality or quality_of(table)
    numbers = [str(column) for column in table.select_dtypes("number")]
    if quality not in numbers:
        raise SweepError(f"no figure {quality!r} in these experiments; there are {', '.join(numbers)}")
    paths = [directory / f"{target}.csv"]
    files.write_bytes(paths[0], table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
    table = read(paths[:1])  # as rounded, so that the kept table draws the same charts
    pruned = table[table["chain"].map(_method) == "prune"]
    if len(pruned):
        paths.append(directory / f"{target}-amount.svg")
        _save(by_amount(pruned, quality), paths[-1])
    paths.append(directory / f"{target}-ratio.svg")
    _save(by_ratio(table, quality), paths[-1])
    return paths


def _save(figure: Any, path: Path) -> None:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    files.write_bytes(path, out.getvalue())


def _trained(row: Mapping[Any, Any]) -> bool:
    """False if the last method compressed what there was, and nothing was trained after that."""
    epochs = [row.get(f"{_method(row['chain'])}.{part}.epochs") for part in ("finetune", "retrain")]
    if pd.isna(epochs[0]):  # a method without such training: a student starts anew
        return True
    return any(float(count) > 0 for count in epochs if not pd.isna(count))


def by_amount(pruned: pd.DataFrame, quality: str) -> Any:
    """Draw quality against the fraction pruned: a line per kind and scope, before retraining and after."""
    figure, axes = new_axes(8.4, 4.0)
    pruned = pruned.assign(trained=[_trained(row) for row in pruned.to_dict("records")])
    colors = {way: f"C{i}" for i, way in enumerate(pruned.groupby(["prune.kind", "prune.scope"]).groups)}
    for (kind, scope, trained), rows in pruned.groupby(["prune.kind", "prune.scope", "trained"]):
        rows = rows.assign(amount=rows["prune.amount"].astype(float)).sort_values("amount")
        axes.plot(
            rows["amount"],
            rows[quality],
            color=colors[kind, scope],
            linestyle="-" if trained else ":",
            marker="o" if trained else "x",
            markersize=4,
            label=plain(f"{kind}, {scope}") + f", {'after' if trained else 'before'} retraining",
        )
    axes.set(xlabel="fraction pruned (weights, or channels)", ylabel=_title(quality))
    _scale(axes, quality, pruned[quality])
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def by_ratio(table: pd.DataFrame, quality: str) -> Any:
    """Draw quality against compression ratio for all methods; hollow marks are models not trained afterwards."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = new_axes(8.4, 4.0)
    table = table.assign(
        method=[f"{chain}{_kind(row)}" for chain, row in zip(table["chain"], table.to_dict("records"), strict=True)],
        trained=[_trained(row) for row in table.to_dict("records")],
    )
    for i, (method, rows) in enumerate(table.groupby("method", sort=True)):
        for trained, some in rows.groupby("trained"):
            axes.scatter(
                some["compression_ratio"],
                some[quality],
                s=22,
                color=f"C{i}",
                facecolors=f"C{i}" if trained else "none",
                label=f"{plain(str(method))}{'' if trained else ', not trained after'}",
            )
    axes.set(xscale="log", xlabel="compression ratio (bytes on disk)", ylabel=_title(quality))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _scale(axes, quality, table[quality])
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _kind(row: Mapping[Any, Any]) -> str:
    return f" ({row['prune.kind']})" if _method(row["chain"]) == "prune" else ""


def _title(quality: str) -> str:
    of, _, name = quality.rpartition(".")
    return " ".join(part for part in (TITLES.get(name, name), of and f"({of})") if part)


def _scale(axes: Any, quality: str, values: pd.Series) -> None:
    if is_fid(quality) and values.min() > 0:  # FID ranges from tenths to hundreds
        axes.set_yscale("log")
