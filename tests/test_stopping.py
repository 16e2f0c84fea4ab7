"""A search ends hopeless trials by their loss curves: by these alone, not by when anybody looked at them."""

import ast
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_running import TOY, WORK, Toy, steps_of
from test_search import TEACHER, card, go
from test_search import space as space  # a fixture
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lowenergy import training
from lowenergy.base import curves
from lowenergy.base.curves import Point
from lowenergy.running.crew import Watch
from lowenergy.searching import trials
from lowenergy.searching.goal import Goal, Limit
from lowenergy.searching.space import Space
from lowenergy.searching.study import Search
from lowenergy.searching.trials import Entries, Failed
from lowenergy.training import Run, loop

pytestmark = pytest.mark.slow

STOPPING = """
import sys
from lowenergy.running import experiments, pipeline

if __name__ == "__main__":
    repo = pipeline.opened()
    with experiments.ours(repo):
        for _ in range(int(sys.argv[1])):
            made = experiments.run_entries(
                repo,
                experiments.waiting(repo),
                jobs=2,
                keep_going=True,
                watch=lambda stage, point: (
                    None if 2 * point.step < point.steps or "mid@2" in stage else f"{stage} is hopeless at {point.loss}"
                ),
            )
            print(made[0].failed, sorted(made[0].waiting))
"""
DRAWING = """
    curves.grow(Path(f"curves/{i}/first"), amount, [(j + 1, 1 / (j + 1)) for j in range(step + 1)])
curves.ended(Path(f"curves/{i}/first"))
table = Path(f"curves/{i}/first/plots/metrics/loss.tsv")
table.parent.mkdir(parents=True)
table.write_text("step\\tloss\\n" + "".join(f"{j + 1}\\t{1 / (j + 1)}\\n" for j in range(amount)))
"""


def test_what_is_hopeless_is_stopped_and_the_rest_goes_on(tmp_path: Path) -> None:
    """While it runs; when it has ended before anybody looked; and when nothing is left to run."""
    toy = Toy.make(tmp_path / "toy", amount=1)
    work = WORK.replace("import os,", "from lowenergy.base import curves\nimport os,")
    kept = '    os.replace(f"{checkpoint}.new", checkpoint)  # it may be killed at any time\n'
    assert kept in work
    work = work.replace(kept, kept.rstrip() + DRAWING)
    (toy.place / "work.py").write_text(work)
    drawn = TOY.replace('["out/mid${item.i}"]', '["out/mid${item.i}", "curves/${item.i}"]')
    (toy.place / "dvc.yaml").write_text(drawn)
    (toy.place / ".gitignore").write_text("/out\n/local\n/curves\n.checkpoints\n")
    toy.run("root")
    toy("git", "add", "--all")
    toy("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "ran")
    (tmp_path / "stopping.py").write_text(STOPPING)
    for name, amount, pace, runs in (("slow", 16, 0.3, 1), ("quick", 4, 0, 2)):
        toy("dvc", "exp", "run", "--queue", "--name", name, "-S", f"amount={amount}")
        output = toy(sys.executable, str(tmp_path / "stopping.py"), str(runs), PACE=str(pace))
        said = [line.rsplit(" [", 1) for line in output.splitlines() if line.startswith("{")]
        hopeless = {f"mid@{i}": f"{name}:mid@{i} is hopeless at {2 / amount}" for i in (0, 1, 3)}
        assert [(ast.literal_eval(failed), waiting) for failed, waiting in said] == runs * [(hopeless, "'end']")]
        assert f"done {name}:mid@2" in output and not steps_of(toy)
        toy("dvc", "queue", "remove", "--queued")
    assert len(toy.started()) == 8, "of the quick ones, each once"


def test_a_run_tells_all_of_its_points_whatever_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def points(root: Path, clock: Iterator[float]) -> list[Point]:
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        told: dict[tuple[str, int], Point] = {}

        def look(network: nn.Module) -> dict[str, float]:
            told.update({(p.curve, p.step): p for p in curves.so_far(root)})
            return {}

        network = nn.Linear(1, 1)
        nn.init.zeros_(network.weight), nn.init.zeros_(network.bias)
        run, steps = Run("a/b", 0, [], root=root), []

        def loss(wrapped: nn.Module, step: int) -> Any:
            steps.append(step)
            x = torch.randn(16, 1, generator=run.generator)
            bad = torch.inf if steps.count(25) == 1 and step == 25 else 0.0
            return (wrapped(x) - 2 * x).square().mean() + bad, {}

        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        training.fit(
            network,
            loss,
            steps=40,
            optimizer=optimizer,
            schedule=LambdaLR(optimizer, lambda step: 1.0),
            run=run,
            part="again",
            points=10,
            measure=look,
            recoveries=1,
        )
        assert run.recoveries == 1 and len(told) >= 8
        assert not list(root.rglob(curves.GROWING)), "it would become part of the stage's output"
        drawn = list(curves.drawn(root))
        assert [p for p in drawn if (p.curve, p.step) in told] == list(told.values()), "nothing told is taken back"
        return drawn

    fast = points(tmp_path / "fast", iter(lambda: 0.0, 1.0))
    ticks = random.Random(0)
    slow = points(tmp_path / "slow", iter(lambda: ticks.uniform(0, 1e6), -1.0))
    assert fast == slow
    assert [(p.curve, p.step, p.steps) for p in fast] == [("plots/curves/a/b/again", 4 * i, 40) for i in range(1, 11)]


def curve(*losses: float, name: str = "plots/curves/some") -> list[Point]:
    return [Point(name, 20 * (i + 1), 20 * len(losses), loss) for i, loss in enumerate(losses)]


Looks = Callable[[list[Point]], list[list[Point]]]


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch, space: Space, values: Any, tmp_path: Path) -> Any:
    """Makes a search whose stages have curves, and are looked at as one likes."""

    def made(place: str, looks: Looks, dies_after: int = 10**9, count: int = 18) -> Search:
        ran: list[str] = []

        def run(repo: Any, wanted: dict[str, Entries], target: str, *, watch: Watch, **options: Any) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for trial, branches in wanted.items():
                ran.append(trial)
                if len(ran) > dies_after:
                    raise KeyboardInterrupt
                for name, entry in branches.items():
                    method = entry["by"]
                    middle = 1 - card(branches)["validation"]["accuracy"]
                    noise = random.Random(f"{name} {method}").random()
                    points = curve(9, noise, middle, 2 * noise, noise, name=f"plots/curves/{name}")
                    said = [watch(f"{trial}:compress@{name}", point) for look in looks(points) for point in look]
                    why = next(filter(None, said), None)
                    if why:
                        found[trial] = Failed(why)
                        break
                found.setdefault(trial, card(branches))
            return found

        monkeypatch.setattr(trials, "run", run)
        (tmp_path / place).mkdir(exist_ok=True)
        goal = Goal(max_loss=Limit.parse("5%"))
        return go(Search("s", "classifier", goal, space, values, TEACHER, root=tmp_path / place), count)

    return made


def each(points: list[Point]) -> list[list[Point]]:
    return [[point] for point in points]


def outcome(search: Search) -> Any:
    return [(r.name, r.values, r.figures) for r in search.results()], search.failures()


def test_the_decision_is_of_the_curves_alone(searched: Any) -> None:
    """Looked at after every point, late, at the end, once more; in a search that is killed and goes on."""
    wanted = outcome(searched("each", each))
    assert len(wanted[1]) >= 3 and all("stopped: half-way its loss is" in why for why in wanted[1].values())
    for place, looks in (
        ("late", lambda points: [points[:4], points[4:]]),
        ("twice", lambda points: [*each(points), points]),
    ):
        assert outcome(searched(place, looks)) == wanted, place
    for dies_after in (3, 14):
        with pytest.raises(KeyboardInterrupt):
            searched(f"killed{dies_after}", each, dies_after)
        assert outcome(searched(f"killed{dies_after}", each)) == wanted


def test_what_is_compared_with_what(searched: Any) -> None:
    found = searched("s", each)
    some = {"target": "classifier", "start": "classifier", "by": "quantize"}
    found.running = {name: {"some": some} for name in map(found._name_of, found._asked(8))}
    stages = [f"{name}:compress@some" for name in found.running]
    known = "quantize, 100 steps"
    good = [result.halfway[known] for result in found.results() if result.within and known in result.halfway]
    worst = max(good)
    assert len(good) >= 3

    def said(stage: str, points: list[Point]) -> str | None:
        return next((why for point in points if (why := found._watch(stage, point))), None)

    assert said(stages[0], curve(9, 9, worst, 9, 9)) is None  # only the middle counts
    assert f"of those within the limits at most {worst:.3g}" in (said(stages[1], curve(0, 0, worst + 0.1, 0, 0)) or "")
    assert said(stages[2], curve(9, 9, 9, 9, 9)[:2]) is None  # it is not yet there
    assert said(stages[3], curve(9, 9, 9, 9)) is None  # of which nothing is known: another length,
    assert said(stages[4], curve(9, 9, 9, 9, 9, name="plots/curves/some/retrain")) is None  # another part
    trial = stages[5].partition(":")[0]
    found.running[trial] = {"other": {**some, "by": "distill"}, "some": {**some, "start": "other"}}
    assert said(stages[5], curve(9, 9, 9, 9, 9)) is None  # or from another network


def test_a_search_finds_its_file_wherever_the_run_works(
    space: Space, values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiment").mkdir()
    monkeypatch.chdir(tmp_path)
    search = Search("s", "classifier", Goal(), space, values, TEACHER, root=Path())
    monkeypatch.chdir(tmp_path / "experiment")
    search.study.set_user_attr("loss", 1.0)
    assert '{"loss":1.0}' in (tmp_path / "searches" / "s.log").read_text()
