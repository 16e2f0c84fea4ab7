"""The search itself: trials are asked of Optuna, a handful at a time, run as experiments, and told.

Its memory is one file of lines, so that a search which was killed goes on where it was. Everything is chosen by
validation figures; those of the test set are not even kept.
"""

import hashlib
import json
import math
import re
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

from lowenergy.base.errors import UserError
from lowenergy.base.params import METHODS
from lowenergy.searching import trials
from lowenergy.searching.goal import HOPELESS, Figures, Goal
from lowenergy.searching.space import Space, refused, sources, with_values
from lowenergy.searching.trials import Failed, Wanted

FOLDER = Path("searches")
KEPT = ("validation", "size_bytes", "compression_ratio", "macs", "parameters", "share_of_time")  # of a trial's card
AT_ONCE = 4  # trials asked for together, for each stage that runs at a time
IN_A_RUT = 10  # draws in a row of what was there before: TPE, which does not learn from them, gives way to chance
SAME_AGAIN = 100  # after which the space counts as exhausted
ENOUGH = 3  # trials within the limits that must have been so far before others are stopped by them
LINE = re.compile(r"step (\d+)/(\d+)\s+loss (\S+)")  # that training prints


class SearchError(UserError):
    """The search cannot start or go on; the message says what to do."""


@dataclass(frozen=True)
class Result:
    """A trial that was measured."""

    name: str  # of its experiment
    chain: str
    values: Mapping[str, Any]
    figures: Figures
    loss: float  # of goal.loss
    cost: float
    within: bool  # all limits


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
        root: Path = Path(),
    ) -> None:
        """
        Args:
            name: of the study: its file's, and what its experiments begin with.
            values: of params.yaml.
            teacher: the card of the uncompressed model, with validation figures.
            sampler: tpe, or random to compare with.
        Raises:
            SearchError: the file is one of another search.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.name, self.target, self.goal, self.space = name, target, goal, space
        self.values, self.teacher, self.seed, self.sampler = values, teacher, seed, sampler
        self.path = root / FOLDER / f"{name}.log"
        self.path.parent.mkdir(exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(self.path)))
        self.study = optuna.create_study(
            storage=storage, study_name=name, directions=["minimize", "minimize"], load_if_exists=True
        )
        self._is_the_same(
            {
                "target": target,
                "limits": json.dumps(asdict(goal)),
                "search space": space.model_dump_json(),
                "params.yaml": hashlib.sha256(json.dumps(_fixed(values, space), sort_keys=True).encode()).hexdigest(),
                "sampler": sampler,
                "seed": str(seed),
            }
        )
        self.chains: dict[str, list[str]] = {}  # of the trials that this process runs
        self.halfway: dict[tuple[str, str, int], dict[str, float]] = {}  # (stage, its source, steps) -> trial -> loss

    def _is_the_same(self, facts: dict[str, str]) -> None:
        before = self.study.user_attrs.get("facts")
        if before is None:
            self.study.set_user_attr("facts", facts)
            for trial in self.space.first(self.values):
                self.study.enqueue_trial(trial)
        elif other := [key for key in facts if facts[key] != before.get(key)]:
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
            wanted = [self._wanted(trial) for trial in asked]
            self.chains |= {trial.name: trial.chain for trial in wanted}
            cards = trials.run(
                repo,
                wanted,
                self.target,
                jobs=jobs,
                address=address,
                watch=self._watch if self.goal.max_loss is not None else None,
                latency=self.goal.minimize == "latency",
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
        pending = self.study.get_trials(states=[TrialState.RUNNING])
        known = {json.dumps(t.user_attrs["values"], sort_keys=True) for t in [*self._told(), *pending] if _drawn(t)}
        pending = [trial for trial in pending if _drawn(trial)]
        while len(pending) < most and (again := self._again()) < SAME_AGAIN:
            number = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = self._sampler(number, by_chance=again >= IN_A_RUT)
            trial = self.study.ask()
            chain, values = self.space.draw(trial)
            key = json.dumps(values, sort_keys=True)
            trial.set_user_attr("chain", chain)
            trial.set_user_attr("values", values)
            if why := refused(self.values, values):
                trial.set_user_attr("why", why)
                self.study.tell(trial, state=TrialState.FAIL)
            elif key in known:
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                known.add(key)
                pending.append(self.study.get_trials(deepcopy=False)[trial.number])
        return pending[:most]

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

    def _wanted(self, trial: FrozenTrial) -> Wanted:
        return Wanted(self._name_of(trial), trial.user_attrs["chain"], trial.user_attrs["values"])

    def _tell(self, trial: FrozenTrial, found: dict[str, Any] | Failed) -> None:
        self.study.sampler = self._sampler(trial.number)  # which keeps the violations, too
        live = optuna.trial.Trial(self.study, trial._trial_id)  # it may have been asked for before a kill
        if isinstance(found, Failed):  # counts as a model that is as large as its teacher, and useless
            live.set_user_attr("why", found.why)
            live.set_user_attr("violations", [HOPELESS])
            self.study.tell(live, [HOPELESS, _log(self.goal.cost({**self.teacher, "share_of_time": 1.0}))])
            return
        figures = {key: found[key] for key in KEPT if key in found}
        live.set_user_attr("figures", figures)
        live.set_user_attr("violations", self.goal.violations(figures, self.teacher))
        self.study.tell(live, [self.goal.loss(figures, self.teacher), _log(self.goal.cost(figures))])

    def _told(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])

    def _watch(self, stage: str, line: str) -> str | None:
        """Why to stop a trial: half-way through a training, its loss is above all of those that were good enough."""
        found = LINE.search(line)
        if not found or 2 * int(found[1]) < int(found[2]):
            return None
        trial, _, name = stage.partition(":")
        source = " → ".join(self.chains.get(trial, [])).partition(name.split("@")[0])[0]  # which losses are towards
        losses = self.halfway.setdefault((name, source, int(found[2])), {})
        if trial in losses:
            return None
        losses[trial] = float(found[3])
        good = [losses[result.name] for result in self.results() if result.within and result.name in losses]
        if len(good) >= ENOUGH and losses[trial] > max(good):
            return (
                f"stopped: half-way its loss is {losses[trial]:.3g}, of those within the limits at most {max(good):.3g}"
            )
        return None

    def results(self) -> list[Result]:
        """All trials that were measured, in the order in which they were drawn."""
        return [
            Result(
                self._name_of(trial),
                " → ".join(trial.user_attrs["chain"]),
                trial.user_attrs["values"],
                trial.user_attrs["figures"],
                trial.values[0],
                self.goal.cost(trial.user_attrs["figures"]),
                all(excess <= 0 for excess in trial.user_attrs["violations"]),
            )
            for trial in self._told()
            if "figures" in trial.user_attrs
        ]

    def failures(self) -> dict[str, str]:
        """Why trials were stopped, or could not be done."""
        return {self._name_of(t): t.user_attrs["why"] for t in self._told() if "why" in t.user_attrs}

    def front(self) -> list[Result]:
        """Trials that no cheaper one matches in quality, cheapest first."""
        best, found = float("inf"), []
        for result in sorted(self.results(), key=lambda r: (r.cost, r.loss, r.name)):
            if result.loss < best:
                best = result.loss
                found.append(result)
        return found

    def winner(self) -> Result | None:
        """The cheapest within all limits."""
        return min((r for r in self.results() if r.within), key=lambda r: (r.cost, r.loss, r.name), default=None)

    def nearest(self, count: int = 3) -> list[Result]:
        """Those that exceed the limits least."""
        excess = {t.number: max(t.user_attrs["violations"]) for t in self._told() if "figures" in t.user_attrs}
        by_name = {f"{self.name}-{number:03}": value for number, value in excess.items()}
        return sorted(self.results(), key=lambda r: by_name[r.name])[:count]


def _fixed(values: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """What all trials have in common: without what they set, which the winner leaves in params.yaml."""
    own = [*space.parameters, *sources(list(METHODS))]
    return with_values(values, dict.fromkeys(own))


def _drawn(trial: FrozenTrial) -> bool:
    return "values" in trial.user_attrs


def _log(cost: float) -> float:
    return math.log10(max(cost, 1e-9))
