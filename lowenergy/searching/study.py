"""The search itself: ask Optuna for a handful of trials at a time, run them as experiments, tell Optuna the results.

Its memory is one file of lines, so that a killed search continues where it was. Everything is chosen by validation
figures; test figures are not even kept.
"""

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from lowenergy.base.cards import told_apart
from lowenergy.base.curves import Point
from lowenergy.base.errors import UserError
from lowenergy.base.nested import with_values
from lowenergy.reporting.tables import pareto_front
from lowenergy.searching import trials
from lowenergy.searching.goal import HOPELESS, HUGE, Figures, Goal, qualities
from lowenergy.searching.space import ARROW, Space, entries, refused, with_entries
from lowenergy.searching.trials import Entries, Failed

FOLDER = Path("searches")
KEPT = ("validation", "size_bytes", "compression_ratio", "macs", "parameters", "share_of_time", "flash", "ram")
AT_ONCE = 4  # trials asked for together, per stage that runs at a time
IN_A_RUT = 10  # draws in a row without anything new, after which chance replaces TPE, which does not learn from them
SAME_AGAIN = 100  # draws in a row without anything new, after which the space counts as exhausted
ENOUGH = 3  # trials within the limits that must have come as far before others are stopped by their losses


class SearchError(UserError):
    """The search cannot start or go on; the message says what to do."""


@dataclass(frozen=True)
class Result:
    """A trial that was measured."""

    name: str  # of its experiment
    entries: Entries  # its branches, the last of which was measured
    chain: str  # of methods
    values: Mapping[str, Any]  # of their parameters
    figures: Figures
    loss: float  # of goal.loss
    cost: float
    excess: float  # over the limits; none is exceeded if it is at most 0
    halfway: Mapping[str, float]  # the loss in the middle of each curve

    @property
    def within(self) -> bool:
        """True if all limits are kept."""
        return self.excess <= 0


class Search:
    """One study: what is searched, and the results so far."""

    def __init__(
        self,
        name: str,
        target: str,
        goal: Goal,
        space: Space,
        values: Mapping[str, Any],
        teacher: Figures,
        *,
        seed: int = 0,
        sampler: str = "tpe",
        images: str = "",
        root: Path = Path(),
    ) -> None:
        """
        Args:
            name: the study's, which its file has, too, and which the names of its experiments begin with.
            values: those of params.yaml.
            teacher: the card of the uncompressed model, with validation figures.
            sampler: tpe, or random to compare with.
            images: a hash of the images that all trials train on.
        Raises:
            SearchError: the file belongs to another search.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.name, self.target, self.goal, self.space = name, target, goal, space
        self.values, self.teacher, self.seed, self.sampler = values, teacher, seed, sampler
        self.path = root / FOLDER / f"{name}.log"
        self.path.parent.mkdir(exist_ok=True)
        # The full path: losses are noted while the run works in the folder of an experiment.
        storage = JournalStorage(JournalFileBackend(str(self.path.resolve())))
        self.study = optuna.create_study(
            storage=storage, study_name=name, directions=["minimize", "minimize"], load_if_exists=True
        )
        self._is_the_same(
            {
                "target": target,
                "limits": json.dumps(asdict(goal)),
                "search space": space.model_dump_json(),
                "params.yaml": hashlib.sha256(json.dumps(_fixed(values, space), sort_keys=True).encode()).hexdigest(),
                "teacher": hashlib.sha256(json.dumps(teacher, sort_keys=True).encode()).hexdigest(),
                "images": images,
                "sampler": sampler,
                "seed": str(seed),
            }
        )
        self.running: dict[str, Entries] = {}  # trials of this process, by name
        self.halfway: dict[str, dict[str, float]] = {}  # trial -> curve -> loss in its middle

    def _is_the_same(self, facts: dict[str, str]) -> None:
        before = self.study.user_attrs.get("facts")
        if before is None:
            self.study.set_user_attr("facts", facts)
            for trial in self.space.first(self.values):
                self.study.enqueue_trial(trial)
        elif other := [key for key in facts if facts[key] != before.get(key, facts[key])]:
            raise SearchError(
                f"{self.path}: was begun with other {', '.join(other)}; give this search another --name, or remove the "
                "file"
            )

    def run(
        self,
        repo: Any,
        count: int,
        *,
        jobs: int | None,
        side_by_side: int,
        address: str | None = None,
        trust: tuple[str, ...] = (),
        report: Callable[["Search", int, float], None] = lambda search, done, left: None,
    ) -> None:
        """Run trials until there are `count` different ones, or the space has no more.

        Args:
            side_by_side: how many stages run at a time.
            report: called with the search, the number of trials so far, and an estimate of the seconds left.
        """
        started, before = time.monotonic(), len(self._told())
        while len(self._told()) < count:
            asked = self._asked(min(count - len(self._told()), AT_ONCE * side_by_side))
            if not asked:
                print(f"{self.name}: the space has no other trials", flush=True)
                return
            wanted = {self._name_of(trial): trial.user_attrs["entries"] for trial in asked}
            self.running |= wanted
            cards = trials.run(
                repo,
                wanted,
                self.target,
                jobs=jobs,
                address=address,
                watch=self._watch if self.goal.max_loss is not None else None,
                latency=self.goal.minimize == "latency",
                device=self.goal.planned_for,
                trust=trust,
            )
            for trial in asked:
                self._tell(trial, cards[self._name_of(trial)])
            done = len(self._told())
            report(self, done, (time.monotonic() - started) / max(1, done - before) * (count - done))

    @property
    def begun(self) -> bool:
        """True if any trial was asked for."""
        return any(trial.state != TrialState.WAITING for trial in self.study.get_trials(deepcopy=False))

    def _asked(self, most: int) -> list[FrozenTrial]:
        """Up to `most` trials that have no results yet: those left by a search that was killed, then new ones."""
        pending = [
            trial
            for trial in self.study.get_trials(states=[TrialState.RUNNING])
            if _drawn(trial) and "why" not in trial.user_attrs
        ]
        known = {_key(trial.user_attrs) for trial in [*self._told(), *pending] if _drawn(trial)}
        while len(pending) < most and (again := self._again()) < SAME_AGAIN:
            number = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = self._sampler(number, by_chance=again >= IN_A_RUT)
            trial = self.study.ask()
            chain, values = self.space.draw(trial)
            branches = entries(self.values, self.target, chain, values)
            why = refused(self.values, branches) or self._too_large(branches)
            for name, value in {"chain": chain, "entries": branches, **({"why": why} if why else {})}.items():
                trial.set_user_attr(name, value)
            trial.set_user_attr("values", values)  # last: a trial that has them is whole, see _drawn
            if why or _key(trial.user_attrs) in known:
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                known.add(_key(trial.user_attrs))
                pending.append(self.study.get_trials(deepcopy=False)[trial.number])
        return pending[:most]

    def _too_large(self, made: Mapping[str, Any]) -> str:
        """Why a trial cannot fit the device, whatever training makes of its weights; '' if it may."""
        limits = {"max_flash": self.goal.max_flash, "max_ram": self.goal.max_ram}
        if set(limits.values()) == {None}:
            return ""
        from lowenergy.searching.fits import too_large

        return too_large(with_entries(self.values, made), list(made)[-1], **limits)

    def _again(self) -> int:
        """How many of the latest draws in a row brought nothing new."""
        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        return next((i for i, state in enumerate(reversed(states)) if state != TrialState.FAIL), len(states))

    def _sampler(self, number: int, *, by_chance: bool = False) -> optuna.samplers.BaseSampler:
        """A sampler, made anew for each trial, so that what it draws depends on earlier trials and not on any kill."""
        seed = (1_000_003 * self.seed + number) % 2**32
        if by_chance or self.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            constraints_func=lambda trial: trial.user_attrs.get("violations") or [0.0],
        )

    def _name_of(self, trial: FrozenTrial) -> str:
        return f"{self.name}-{trial.number:03}"

    def _tell(self, trial: FrozenTrial, found: dict[str, Any] | Failed) -> None:
        self.study.sampler = self._sampler(trial.number)  # it stores the violations, too
        live = optuna.trial.Trial(self.study, trial._trial_id)  # it may have been asked for before a kill
        if isinstance(found, Failed):  # counts as useless, and as costly as the teacher, or HUGE on a device
            live.set_user_attr("why", found.why)
            live.set_user_attr("violations", [HOPELESS])
            cost = self.goal.cost({**self.teacher, "share_of_time": 1.0, "flash": HUGE, "ram": HUGE})
            self.study.tell(live, [HOPELESS, _log(cost)])
            return
        figures = {key: found[key] for key in KEPT if key in found}
        live.set_user_attr("figures", figures)
        live.set_user_attr("violations", self.goal.violations(figures, self.teacher))
        self.study.tell(live, [self.goal.loss(figures, self.teacher), _log(self.goal.cost(figures))])

    def _told(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])

    def _watch(self, stage: str, point: Point) -> str | None:
        """Why to stop a trial: half-way through a training, its loss is above that of every trial within the limits.

        There must be at least ENOUGH of those. The loss is that of the curve's first point at or past the middle, both
        for a stage that runs now and for one that ran before, so that neither a machine's speed nor a kill decides.
        """
        if 2 * point.step < point.steps:
            return None
        trial, _, name = stage.partition(":")
        model = name.partition("@")[2]
        part = point.curve.partition(f"/{model}")[2]  # which curve of the model's training
        curve = f"{_chain_to(model, self.running[trial]) or name}{part}, {point.steps} steps"
        losses = self.halfway.setdefault(trial, {})
        if curve in losses:
            return None
        losses[curve] = point.loss
        number = int(trial.rpartition("-")[2])
        live = optuna.trial.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)
        live.set_user_attr("halfway", losses)
        good = [result.halfway[curve] for result in self.results() if result.within and curve in result.halfway]
        if len(good) >= ENOUGH and point.loss > max(good):
            return f"stopped: half-way its loss is {point.loss:.3g}, of those within the limits at most {max(good):.3g}"
        return None

    def results(self) -> list[Result]:
        """All measured trials, in the order in which they were drawn."""
        return [
            Result(
                self._name_of(trial),
                trial.user_attrs["entries"],
                ARROW.join(trial.user_attrs["chain"]),
                trial.user_attrs["values"],
                trial.user_attrs["figures"],
                trial.values[0],
                self.goal.cost(trial.user_attrs["figures"]),
                max(trial.user_attrs["violations"], default=0.0),
                trial.user_attrs.get("halfway", {}),
            )
            for trial in self._told()
            if "figures" in trial.user_attrs
        ]

    def failures(self) -> dict[str, str]:
        """Why trials were stopped or could not be done, by name."""
        return {self._name_of(t): t.user_attrs["why"] for t in self._told() if "why" in t.user_attrs}

    def front(self) -> list[Result]:
        """The front, cheapest first: each trial is better than the one before by more than chance."""
        results = self.results()
        lost = [[r.figures["validation"]["lost"][f"{n}_interval"] for n in qualities(r.figures)] for r in results]
        costs, losses = [r.cost for r in results], [r.loss for r in results]
        return [results[i] for i in pareto_front(costs, losses, lambda i, j: any(map(told_apart, lost[i], lost[j])))]

    def winner(self) -> Result | None:
        """The cheapest trial within all limits; None if there is none."""
        return min((r for r in self.results() if r.within), key=lambda r: (r.cost, r.loss, r.name), default=None)

    def nearest(self, count: int = 3) -> list[Result]:
        """The trials that exceed the limits least."""
        return sorted(self.results(), key=lambda r: r.excess)[:count]


def _fixed(values: Mapping[str, Any], space: Space) -> Any:
    """The values that all trials share: without those that they set, and without branches, which may be a winner's."""
    return with_values({**values, "branches": None}, dict.fromkeys(space.parameters))


def _key(attributes: Mapping[str, Any]) -> str:
    """What identifies a trial: its chain and its values."""
    return json.dumps([attributes["chain"], attributes["values"]], sort_keys=True)


def _chain_to(model: str, entries: Entries) -> str:
    """The methods that made a branch of a trial; '' if it has no such branch. The same methods, comparable losses."""
    names = list(entries)
    links = names[: names.index(model) + 1] if model in names else []
    return ARROW.join(str(entries[name]["by"]) for name in links)


def _drawn(trial: FrozenTrial) -> bool:
    return "values" in trial.user_attrs


def _log(cost: float) -> float:
    return math.log10(max(cost, 1e-9))
