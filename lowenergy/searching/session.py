"""`lowenergy search` from beginning to end: check everything, search, show what was found, apply it if asked to."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lowenergy import params
from lowenergy.base import cards
from lowenergy.running import crew, experiments, pipeline
from lowenergy.searching import outcome, trials
from lowenergy.searching import space as spaces
from lowenergy.searching.goal import QUALITIES, Figures, Goal, GoalError, Limit, Minimized, qualities, too_few
from lowenergy.searching.study import Search, SearchError


def search(
    target: str,
    *,
    minimize: Minimized = "bytes",
    max_loss: str | None = None,
    max_bytes: int | None = None,
    max_macs: int | None = None,
    max_flash: int | None = None,
    max_ram: int | None = None,
    device: str | None = None,
    count: int = 40,
    space: Path = Path("search.yaml"),
    name: str | None = None,
    sampler: str = "tpe",
    seed: int = 0,
    jobs: int | None = None,
    address: str | None = None,
    apply: bool = False,
) -> None:
    """Begin or continue a search; see `lowenergy search --help`.

    Raises:
        UserError: something about the goal, the space, the workspace or an earlier search is wrong, before any compute;
            or running the trials, or measuring the winner, has failed.
    """
    if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
        raise SearchError(f"--name {name!r}: it becomes a file's and experiments'; give letters, digits, - and _")
    p = params.load()
    if target not in p.teachers:
        raise SearchError(f"--target {target}: params.yaml has {', '.join(p.teachers)}")
    if count < 1 or (jobs is not None and jobs < 1):
        raise SearchError("--trials and --jobs: give at least 1")
    teacher = _teacher(target)
    goal = _goal(teacher, minimize, max_loss, max_bytes, max_macs)
    if device is not None:
        from lowenergy.runtimes.c import devices

        named = devices.named(device)
        max_flash, max_ram = min(max_flash or named.flash, named.flash), min(max_ram or named.ram, named.ram)
    goal = replace(goal, max_flash=max_flash, max_ram=max_ram)
    values = YAML(typ="safe").load(Path("params.yaml"))
    name = name or f"{target}-{minimize}"
    tried = spaces.load(space, target, values)
    repo = pipeline.opened()
    experiments.check_images(repo, values)
    images = _images(repo, p.data.folder)
    study = Search(name, target, goal, tried, values, teacher, seed=seed, sampler=sampler, images=images)
    if others := [n for n in map(experiments.name_of, experiments.waiting(repo)) if not n.startswith(f"{name}-")]:
        raise SearchError(
            f"{len(others)} experiments are queued that are not this search's ({others[0]}); run them first: "
            "`lowenergy run --queue`, or `dvc queue remove --queued`"
        )
    if not study.begun and (old := trials.begun_with(repo, f"{name}-")):
        raise SearchError(
            f"{old[0]} is of an earlier search: its figures would be taken for this one's; give another --name, or "
            "remove it: `dvc exp remove`, `dvc queue remove`"
        )
    print(
        f"{outcome.limits(study)}; {count} trials, kept in {study.path}", *too_few(goal, teacher), sep="\n", flush=True
    )
    side_by_side = 1 if address else crew.jobs_and_threads(jobs)[0]
    trust = tuple(p.trusted)
    study.run(repo, count, jobs=jobs, side_by_side=side_by_side, address=address, trust=trust, report=outcome.progress)
    best = study.winner()
    if best is None:
        outcome.end(study, "", None)
        return
    experiment = best.name if len(best.entries) == 1 else f"{best.name}-whole"
    wanted = {experiment: best.entries}
    card = trials.run(repo, wanted, target, jobs=jobs, address=address, trust=trust, whole=True)[experiment]
    if isinstance(card, trials.Failed):
        raise SearchError(f"{experiment}: {card.why}")
    outcome.end(study, experiment, card)
    if apply:
        trials.apply(repo, experiment)


def _goal(
    teacher: Figures, minimize: Minimized, max_loss: str | None, max_bytes: int | None, max_macs: int | None
) -> Goal:
    limit = None if max_loss is None else Limit.parse(max_loss)
    if limit is not None and not limit.relative and len(qualities(teacher)) > 1:
        raise GoalError(f"--max-loss {max_loss}: a JEM loses points of accuracy and FID; give a share of both, as 5%")
    for option, value in (("--max-bytes", max_bytes), ("--max-macs", max_macs)):
        if value is not None and value < 1:
            raise GoalError(f"{option} {value}: give at least 1")
    return Goal(minimize, limit, max_bytes, max_macs)


def _teacher(target: str) -> Figures:
    """The teacher's card.

    Raises:
        SearchError: the pipeline has not measured it, or did so before figures had intervals.
    """
    card = cards.collect([target]).get(target, {})
    validation: Any = card.get("validation", {})
    if not any(f"{quality}_interval" in validation for quality in QUALITIES):
        raise SearchError(
            f"{cards.FOLDER}/{target}.json: no validation figures to choose by; "
            f"`lowenergy run evaluate-teacher@{target}`"
        )
    return card


def _images(repo: Any, folder: str) -> str:
    """DVC's hash of the project's own images as they are now; '' if there are none. Figures of other images say nothing
    about these."""
    deps = [dep for stage in repo.index.stages for dep in stage.deps if Path(dep.def_path) == Path(folder)]
    return str(deps[0].get_hash().value) if deps and deps[0].exists else ""
