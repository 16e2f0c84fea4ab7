"""The search itself: trials are asked of Optuna, a handful at a time, run as experiments, and told.

Its memory is one file of lines, so that a search which was killed goes on where it was. Everything is chosen by
validation figures; those of the test set are not even kept.
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
AT_ONCE = 4  # trials asked for together, for each stage that runs at a time
IN_A_RUT = 10  # draws in a row of what was there before: TPE, which does not learn from them, gives way to chance
SAME_AGAIN = 100  # after which the space counts as exhausted
ENOUGH = 3  # trials within the limits that must have been so far before others are stopped by them


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
    excess: float  # over the limits, of which none is exceeded up to 0
    halfway: Mapping[str, float]  # of each curve, the loss in its middle

    @property
    def within(self) -> bool:
        """All limits."""
        return self.excess <= 0


class Search:
    """One study: what is searched, and what was found."""

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
            name: of the study: its file's, and what its experiments begin with.
            values: of params.yaml.
            teacher: the card of the uncompressed model, with validation figures.
            sampler: tpe, or random to compare with.
            images: a hash of what all trials train on.
        Raises:
            SearchError: the file is one of another search.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.name, self.target, self.goal, self.space = name, target, goal, space
        self.values, self.teacher, self.seed, self.sampler = values, teacher, seed, sampler
        self.path = root / FOLDER / f"{name}.log"
        self.path.parent.mkdir(exist_ok=True)
        # In full: losses are noted while the run works in the folder of an experiment.
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
        """Until there are `count` different trials, or the space has no more.

        Args:
            side_by_side: stages that run at a time.
            report: called with the number of trials so far, and the seconds that the others will take.
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
                device=self.goal.max_ram if self.goal.max_ram is not None else self.goal.of_device,
                trust=trust,
            )
            for trial in asked:
                self._tell(trial, cards[self._name_of(trial)])
            done = len(self._told())
            report(self, done, (time.monotonic() - started) / max(1, done - before) * (count - done))

    @property
    def begun(self) -> bool:
        """Whether any trial was asked for."""
        return any(trial.state != TrialState.WAITING for trial in self.study.get_trials(deepcopy=False))

    def _asked(self, most: int) -> list[FrozenTrial]:
        """Trials that were asked for and not yet told: those of a search that was killed, or new ones."""
        pending = [trial for trial in self.study.get_trials(states=[TrialState.RUNNING]) if _drawn(trial)]
        known = {_key(trial.user_attrs) for trial in [*self._told(), *pending] if _drawn(trial)}
        while len(pending) < most and (again := self._again()) < SAME_AGAIN:
            number = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = self._sampler(number, by_chance=again >= IN_A_RUT)
            trial = self.study.ask()
            chain, values = self.space.draw(trial)
            made = entries(self.values, self.target, chain, values)
            for name, value in {"chain": chain, "values": values, "entries": made}.items():
                trial.set_user_attr(name, value)
            if why := refused(self.values, made) or self._too_large(made):
                trial.set_user_attr("why", why)
            if why or _key(trial.user_attrs) in known:
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                known.add(_key(trial.user_attrs))
                pending.append(self.study.get_trials(deepcopy=False)[trial.number])
        return pending[:most]

    def _too_large(self, made: Mapping[str, Any]) -> str:
        """Why a trial cannot fit the device, whatever training makes of it; '' if it may."""
        limits = {"max_flash": self.goal.max_flash, "max_ram": self.goal.max_ram}
        if set(limits.values()) == {None}:
            return ""
        from lowenergy.searching.fits import too_large

        return too_large(with_entries(self.values, made), list(made)[-1], **limits)

    def _again(self) -> int:
        """Draws up to now, in a row, that brought nothing new."""
        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        return next((i for i, state in enumerate(reversed(states)) if state != TrialState.FAIL), len(states))

    def _sampler(self, number: int, *, by_chance: bool = False) -> optuna.samplers.BaseSampler:
        """Made anew for each trial, so that what is drawn depends on the trials before it, and not on any kill."""
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
        self.study.sampler = self._sampler(trial.number)  # which keeps the violations, too
        live = optuna.trial.Trial(self.study, trial._trial_id)  # it may have been asked for before a kill
        if isinstance(found, Failed):  # counts as a model that is as large as its teacher, and useless
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
        """Why to stop a trial: half-way through a training, its loss is above all of those that were good enough.

        That is the loss at the curve's first point at or past the middle, of a stage that runs as of one that has been
        run before; so neither how fast a machine is nor a kill decides about a trial.
        """
        if 2 * point.step < point.steps:
            return None
        trial, _, name = stage.partition(":")
        model = name.partition("@")[2]
        part = point.curve.partition(f"/{model}")[2]  # of its training
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
        """All trials that were measured, in the order in which they were drawn."""
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
        """Why trials were stopped, or could not be done."""
        return {self._name_of(t): t.user_attrs["why"] for t in self._told() if "why" in t.user_attrs}

    def front(self) -> list[Result]:
        """Trials that are better than all cheaper ones by more than chance, cheapest first."""
        found = self.results()
        lost = [[r.figures["validation"]["lost"][f"{n}_interval"] for n in qualities(r.figures)] for r in found]
        costs, losses = [r.cost for r in found], [r.loss for r in found]
        return [found[i] for i in pareto_front(costs, losses, lambda i, j: any(map(told_apart, lost[i], lost[j])))]

    def winner(self) -> Result | None:
        """The cheapest within all limits."""
        return min((r for r in self.results() if r.within), key=lambda r: (r.cost, r.loss, r.name), default=None)

    def nearest(self, count: int = 3) -> list[Result]:
        """Those that exceed the limits least."""
        return sorted(self.results(), key=lambda r: r.excess)[:count]


def _fixed(values: Mapping[str, Any], space: Space) -> Any:
    """What all trials have in common: without what they set, and without branches, among which the winner's are."""
    return with_values({**values, "branches": None}, dict.fromkeys(space.parameters))


def _key(attributes: Mapping[str, Any]) -> str:
    """What a trial is."""
    return json.dumps([attributes["chain"], attributes["values"]], sort_keys=True)


def _chain_to(model: str, entries: Entries) -> str:
    """The methods that made a branch of a trial: losses compare where they are the same; '' if it is none of these."""
    names = list(entries)
    links = names[: names.index(model) + 1] if model in names else []
    return ARROW.join(str(entries[name]["by"]) for name in links)


def _drawn(trial: FrozenTrial) -> bool:
    return "values" in trial.user_attrs


def _log(cost: float) -> float:
    return math.log10(max(cost, 1e-9))
