"""`lowenergy search` from beginning to end: check everything, search, show what was found, apply it if asked to."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lowenergy.base import params
from lowenergy.running import crew, experiments, pipeline
from lowenergy.searching import outcome, trials
from lowenergy.searching import space as spaces
from lowenergy.searching.goal import Goal, GoalError, Limit, Minimized
from lowenergy.searching.study import Search, SearchError


def search(
    target: str,
    *,
    minimize: Minimized = "bytes",
    max_loss: str | None = None,
    max_bytes: int | None = None,
    max_macs: int | None = None,
    count: int = 40,
    space: Path = Path("search.yaml"),
    name: str | None = None,
    sampler: str = "tpe",
    seed: int = 0,
    jobs: int | None = None,
    address: str | None = None,
    apply: bool = False,
) -> None:
    """Search, or go on with a search; see `lowenergy search --help`.

    Raises:
        UserError: something about goal, space, workspace or an earlier search is wrong; one line, before any compute.
    """
    p = params.load()
    if target not in p.targets:
        raise SearchError(f"--target {target}: params.yaml has {', '.join(p.targets)}")
    if count < 1 or (jobs is not None and jobs < 1):
        raise SearchError("--trials and --jobs: give at least 1")
    goal = _goal(target, minimize, max_loss, max_bytes, max_macs)
    values = YAML(typ="safe").load(Path("params.yaml"))
    name = name or f"{target}-{minimize}"
    found = Search(
        name, target, goal, spaces.load(space, target, values), values, _teacher(target), seed=seed, sampler=sampler
    )
    repo = pipeline.opened()
    if others := [n for n in map(experiments.name_of, experiments.waiting(repo)) if not n.startswith(f"{name}-")]:
        raise SearchError(
            f"{len(others)} experiments are queued that are not this search's ({others[0]}); run them first: "
            "`lowenergy run --queue`, or `dvc queue remove --queued`"
        )
    if not found.begun and (old := trials.begun_with(repo, f"{name}-")):
        raise SearchError(
            f"{old[0]} is of an earlier search: its figures would be taken for this one's; give another --name, or "
            "remove it: `dvc exp remove`, `dvc queue remove`"
        )
    print(f"{outcome.limits(found)}; {count} trials, kept in {found.path}", flush=True)
    side_by_side = 1 if address else crew.shares(jobs)[0]
    trust = tuple(p.trusted)
    found.run(repo, count, jobs=jobs, side_by_side=side_by_side, address=address, trust=trust, report=outcome.progress)
    best = found.winner()
    card = None
    if best is not None:
        revision = experiments.revisions(repo, [best.name])[best.name]
        card = trials.card_of(repo, revision, target, best.chain.split(" → ")[-1])
    outcome.end(found, card)
    if apply and best is not None:
        subprocess.run([sys.executable, "-m", "dvc", "exp", "apply", best.name], check=True)


def _goal(target: str, minimize: Minimized, max_loss: str | None, max_bytes: int | None, max_macs: int | None) -> Goal:
    limit = None if max_loss is None else Limit.parse(max_loss)
    if limit is not None and not limit.relative and target == "jem":
        raise GoalError(f"--max-loss {max_loss}: a JEM loses points of accuracy and FID; give a share of both, as 5%")
    for option, value in (("--max-bytes", max_bytes), ("--max-macs", max_macs)):
        if value is not None and value < 1:
            raise GoalError(f"{option} {value}: give at least 1")
    return Goal(minimize, limit, max_bytes, max_macs)


def _teacher(target: str) -> dict[str, Any]:
    """The teacher's card.

    Raises:
        SearchError: the pipeline has not measured it, or did so before there were validation figures.
    """
    path = Path(f"metrics/{target}/teacher.card.json")
    card: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "validation" not in card:
        raise SearchError(f"{path}: no validation figures to choose by; `lowenergy run evaluate@{target}-teacher`")
    return card
