"""A search finds what is small and good enough, goes on after a kill, and refuses what cannot be: without any training,
then once with all of it."""

import json
import math
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Clone, with_changes
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from lowenergy.base.errors import UserError
from lowenergy.searching import outcome, trials
from lowenergy.searching import space as spaces
from lowenergy.searching.goal import Goal, GoalError, Limit
from lowenergy.searching.study import Search, SearchError
from lowenergy.searching.trials import Failed, Wanted

SPACE = {
    "chains": [["prune"], ["quantize"], ["prune", "quantize"]],
    "parameters": {"prune.amount": {"low": 0.1, "high": 0.9}, "quantize.weight_bits": {"low": 2, "high": 8}},
}
TEACHER = {"validation": {"accuracy": 0.9}, "accuracy": 0.9, "size_bytes": 100_000, "macs": 1000}


def written(path: Path, content: Any) -> Path:
    YAML().dump(content, path)
    return path


@pytest.fixture
def space(tmp_path: Path, values: Any) -> spaces.Space:
    return spaces.load(written(tmp_path / "search.yaml", SPACE), "classifier", values)


def card(wanted: Wanted, test_accuracy: float = 0.5) -> dict[str, Any]:
    """What such a model might be like: each bit and each weight helps, up to a point."""
    bits = float(wanted.values.get("quantize.weight_bits", 32))
    kept = 1 - float(wanted.values.get("prune.amount", 0))
    accuracy = 0.9 - 0.2 * math.exp(-2 * (bits - 2)) - 0.3 * math.exp(-12 * kept)
    size = round(100_000 * kept * bits / 32)
    cost = {"size_bytes": size, "compression_ratio": 100_000 / size, "macs": 1000 * kept}
    return {"validation": {"accuracy": accuracy}, "accuracy": test_accuracy, **cost}


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, space: spaces.Space, values: Any) -> Any:
    """Makes a search whose trials are measured at once."""
    ran: list[str] = []

    def run(repo: Any, wanted: list[Wanted], target: str, **options: Any) -> dict[str, Any]:
        ran.extend(trial.name for trial in wanted)
        found: dict[str, Any] = {}
        for trial in wanted:
            if len(ran) > dies_after[0]:
                raise KeyboardInterrupt
            bad = float(trial.values.get("prune.amount", 0)) > 0.85
            found[trial.name] = Failed("too many") if bad else card(trial, test_accuracy[0])
        return found

    monkeypatch.setattr(trials, "run", run)
    dies_after, test_accuracy = [10**9], [0.5]

    def made(name: str, goal: Goal | None = None, **options: Any) -> Search:
        goal = goal or Goal(max_loss=Limit.parse("5%"))
        return Search(name, "classifier", goal, space, values, TEACHER, root=tmp_path, **options)

    made.ran, made.dies_after, made.test_accuracy = ran, dies_after, test_accuracy  # type: ignore[attr-defined]
    return made


def go(search: Search, count: int = 24) -> Search:
    search.run(None, count, jobs=2, side_by_side=2)
    return search


def test_the_winner_is_small_and_within_the_limits(search: Any) -> None:
    found = go(search("tpe"))
    best = found.winner()
    assert len(found.results()) + len(found.failures()) == 24
    assert best is not None and best.within and best.chain == "prune → quantize"
    assert best.figures["validation"]["accuracy"] >= 0.95 * 0.9
    assert all(best.cost <= result.cost for result in found.results() if result.within)
    assert best.cost < 6000 < min(r.cost for r in found.results()[:2])  # better than what it began with
    front = found.front()
    assert [r.cost for r in front] == sorted(r.cost for r in front)
    assert [r.loss for r in front] == sorted((r.loss for r in front), reverse=True)


def test_no_trial_is_drawn_twice(search: Any) -> None:
    found = go(search("twice"), 30)
    drawn = [json.dumps(result.values, sort_keys=True) for result in found.results()]
    assert len(set(drawn)) == len(drawn)


def test_a_chain_that_is_best_and_soon_exhausted_ends_no_search(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, values: Any
) -> None:
    def run(repo: Any, wanted: list[Wanted], target: str, **options: Any) -> dict[str, Any]:
        small = {"size_bytes": 1000, "compression_ratio": 100, "macs": 10}
        return {t.name: card(t) | (small if "distill.student.width" in t.values else {}) for t in wanted}

    monkeypatch.setattr(trials, "run", run)
    few = {"chains": [["distill"], ["prune"]], "parameters": SPACE["parameters"] | {"distill.student.width": [4, 8]}}
    space = spaces.load(written(tmp_path / "search.yaml", few), "classifier", values)
    goal = Goal(max_loss=Limit.parse("5%"))
    for sampler, seed in (("tpe", 0), ("tpe", 1), ("random", 0)):
        name = f"{sampler}{seed}"
        found = go(Search(name, "classifier", goal, space, values, TEACHER, seed=seed, sampler=sampler, root=tmp_path))
        assert len(found.results()) == 24
    few["parameters"] = {"prune.amount": [0.3, 0.5], "distill.student.width": [4, 8]}
    space = spaces.load(written(tmp_path / "search.yaml", few), "classifier", values)
    found = go(Search("small", "classifier", goal, space, values, TEACHER, root=tmp_path))
    assert len(found.results()) == 4


def test_a_search_that_was_killed_goes_on_to_the_same_end(search: Any) -> None:
    whole = go(search("whole", seed=3))
    search.ran.clear()
    search.dies_after[0] = 13
    with pytest.raises(KeyboardInterrupt):
        go(search("killed", seed=3))
    search.dies_after[0] = 10**9
    again = go(search("killed", seed=3))
    assert [r.values for r in again.results()] == [r.values for r in whole.results()]
    assert [r.figures for r in again.results()] == [r.figures for r in whole.results()]


def test_another_test_set_changes_no_choice(search: Any) -> None:
    one = go(search("one"))
    search.test_accuracy[0] = 0.99
    other = go(search("other"))
    assert [r.values for r in one.results()] == [r.values for r in other.results()]
    assert one.winner() and one.winner().values == other.winner().values
    assert "accuracy" not in one.results()[0].figures  # of the test set


def test_limits_are_kept_or_the_nearest_shown(search: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tight = go(search("tight", Goal(max_loss=Limit.parse("1%"), max_bytes=100)), 12)
    assert tight.winner() is None
    outcome.end(tight, None)
    shown = capsys.readouterr().out
    assert "No trial kept the limits (classifier: least bytes, at most 1 % of the teacher's figure lost" in shown
    assert len(shown[shown.index("The nearest:") :].splitlines()) == 4
    few = go(search("macs", Goal("macs", max_loss=Limit.parse("2.5"))), 16)
    assert few.winner() and few.winner().cost < 500


def test_what_is_printed_and_written(search: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = go(search("shown"))
    best = found.winner()
    outcome.end(found, card(Wanted("x", [], best.values), 0.8765))
    shown = capsys.readouterr().out
    assert f"dvc exp apply {best.name}" in shown and "87.65%" in shown and f"{best.cost:,.0f} bytes" in shown
    assert max(map(len, shown.splitlines())) <= 120
    page = found.path.with_suffix(".html").read_text()
    assert page.count("<circle") == len(found.results()) + 1 and "least bytes" in page and "0.8765" not in page
    table = found.path.with_suffix(".csv").read_text().splitlines()
    assert len(table) == len(found.results()) + 1 and "validation.accuracy" in table[0]


def test_an_energys_search_ends_with_its_fid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, values: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(repo: Any, wanted: list[Wanted], target: str, **options: Any) -> dict[str, Any]:
        cards = {trial.name: card(trial) for trial in wanted}
        for found in cards.values():
            found["validation"] = {"fid": 2 - found["validation"]["accuracy"]}
        return cards

    monkeypatch.setattr(trials, "run", run)
    space = spaces.load(written(tmp_path / "search.yaml", SPACE), "ebm", values)
    teacher = TEACHER | {"validation": {"fid": 1.1}, "fid": 1.0}
    found = go(Search("drawn", "ebm", Goal(max_loss=Limit.parse("10%")), space, values, teacher, root=tmp_path), 12)
    outcome.end(found, {"fid": 1.05} if found.winner() else None)
    assert "FID 1.05" in capsys.readouterr().out
    page = found.path.with_suffix(".html").read_text()
    assert "validation FID, lower is better" in page and page.count("<circle") == len(found.results()) + 1


def test_another_space_is_another_search(search: Any, space: spaces.Space, values: Any, tmp_path: Path) -> None:
    go(search("mine"), 4)
    with pytest.raises(SearchError, match=r"begun with other limits; give this search another --name"):
        search("mine", Goal())
    with pytest.raises(SearchError, match=r"begun with other params\.yaml"):
        changed = with_changes(values, {"prune.rounds": 2})
        Search("mine", "classifier", Goal(max_loss=Limit.parse("5%")), space, changed, TEACHER, root=tmp_path)
    applied = with_changes(values, {"prune.amount": 0.2, "quantize.source": "prune"})  # as a winner leaves them
    goal = Goal(max_loss=Limit.parse("5%"))
    assert Search("mine", "classifier", goal, space, applied, TEACHER, root=tmp_path).results()
    other = space.model_copy(update={"chains": [["prune"]]})
    with pytest.raises(SearchError, match="begun with other search space"):
        Search("mine", "classifier", Goal(max_loss=Limit.parse("5%")), other, values, TEACHER, root=tmp_path)


def test_hopeless_trials_are_stopped_half_way(search: Any) -> None:
    found = go(search("watched"))
    good = [result.name for result in found.results() if result.within][:3]
    found.chains = {key: ["quantize"] for key in [*good, "new", "fine"]} | {"pruned": ["prune", "quantize"]}
    for i, name in enumerate(good):
        assert (
            found._watch(f"{name}:quantize@classifier", f"classifier/quantize  step 50/100  loss 0.{i + 1}  9 s left")
            is None
        )
    line = "classifier/quantize  step {}/100  loss {}  left"
    assert found._watch("new:quantize@classifier", line.format(40, 9.0)) is None  # not yet half-way
    assert "0.3" in (found._watch("new:quantize@classifier", line.format(60, 0.9)) or "")
    assert found._watch("fine:quantize@classifier", line.format(60, 0.25)) is None
    assert found._watch("other:prune@classifier", line.format(60, 0.9)) is None  # of which nothing is known
    assert found._watch("pruned:quantize@classifier", line.format(60, 0.9)) is None  # towards another network


@given(value=st.floats(0.01, 1), teacher=st.floats(0.1, 1), share=st.floats(0, 0.5))
def test_limits_are_what_they_say(value: float, teacher: float, share: float) -> None:
    kept = Limit.parse(f"{100 * share}%").excess("accuracy", value, teacher) <= 0
    assert kept == (teacher - value <= share * teacher + 1e-12) or math.isclose(teacher - value, share * teacher)
    kept = Limit.parse(f"{share}").excess("fid", value, teacher) <= 0
    assert kept == (value - teacher <= share) or math.isclose(value - teacher, share)
    points = Limit.parse("1.5").excess("accuracy", teacher - 0.01, teacher)
    assert points == pytest.approx(-0.5)


@pytest.mark.parametrize("text", ["", "x", "-1", "5 %%", "nan%", "inf"])
def test_bad_limits(text: str) -> None:
    with pytest.raises(GoalError, match="give 5%"):
        Limit.parse(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": {"prune.amonut": [1]}}, r"prune\.amonut is no parameter of a method"),
        ({"parameters": {"classifier.train.lr": [1]}}, r"classifier\.train\.lr is no parameter of a method"),
        ({"parameters": {"prune.source": ["teacher"]}}, r"prune\.source is no parameter of a method"),
        ({"parameters": {"prune.amount": {"low": 0.1, "high": 1.5}}}, r"prune\.amount = 1\.5"),
        ({"parameters": {"prune.amount": {"low": 0.5, "high": 0.1}}}, r"low = 0\.5 is not below high = 0\.1"),
        ({"parameters": {"prune.kind": ["structred"]}}, r"prune\.kind = 'structred'"),
        ({"chains": [["pq", "quantize"]]}, "chain pq → quantize cannot be: quantize.source = 'pq'"),
        ({"chains": [["shrink"]]}, "chain shrink: shrink is none of prune"),
        ({"chains": [["prune", "prune"]]}, "a method twice"),
        ({"chains": []}, "chains"),
        ({"chainz": []}, "chainz"),
    ],
)
def test_bad_spaces_are_one_line(tmp_path: Path, values: Any, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "search.yaml", {**SPACE, **change})
    with pytest.raises(spaces.SpaceError, match=message) as error:
        spaces.load(path, "classifier", values)
    assert all(line.startswith(str(path)) for line in str(error.value).splitlines())


def test_what_ships_is_a_space_for_every_target(values: Any, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[1] / "search.yaml"
    for target in ("classifier", "ebm", "jem"):
        space = spaces.load(shipped, target, values)
        assert all(not spaces.refused(values, spaces.sources(chain)) for chain in space.chains)
        for first in space.first(values):
            assert not spaces.refused(values, {k: v for k, v in first.items() if k != "chain"})
    with pytest.raises(UserError, match="no such file"):
        spaces.load(tmp_path / "none.yaml", "ebm", values)
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        spaces.load(tmp_path / "bad.yaml", "ebm", values)


def test_search_end_to_end(clone: Clone) -> None:
    """Real experiments: killed in the middle, gone on with, the winner applied; nothing else in the workspace moves."""
    space = {
        "chains": [["prune"], ["quantize"], ["prune", "quantize"]],
        "parameters": {"prune.amount": [0.55, 0.75], "quantize.weight_bits": [5, 7]},
    }
    written(clone.path / "small.yaml", space)
    command = ["lowenergy", "search", "--target", "classifier", "--max-loss", "30%", "--space", "small.yaml"]
    command += ["--trials", "5", "--jobs", "2"]
    try:
        clone.run("git", "add", "small.yaml")
        clone.run("git", "commit", "-qm", "a space")
        running = subprocess.Popen(
            command, cwd=clone.path, env=clone.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("done "):
                done = line.split()[1]
                break
        running.send_signal(signal.SIGKILL)
        running.wait()
        time.sleep(1)
        output = clone.run(*command, "--apply")
        assert "running " in output and f"running {done}" not in output, output  # what was done before the kill
        names = [line.split()[-1] for line in output.splitlines() if "dvc exp apply" in line]
        assert len(names) == 1 and names[0].startswith("classifier-bytes-")
        assert "On the test images, looked at once: accuracy" in output
        shown = json.loads(clone.run("dvc", "exp", "show", "--json"))
        found = [e["name"] for revision in shown for e in revision["experiments"] or []]
        assert sum(str(name).startswith("classifier-bytes-") for name in found) == 5, output
        assert "Data and pipelines are up to date" in clone.run("dvc", "status", f"evaluate@classifier-{branch(clone)}")
        rows = (clone.path / "searches/classifier-bytes.csv").read_text().splitlines()
        assert len(rows) == 6
        again = clone.run(*command)  # nothing is left to try
        assert "running" not in again and names[0] in again
    finally:
        clone.run("dvc", "exp", "remove", "-A", check=False)
        shutil.rmtree(clone.path / "searches", ignore_errors=True)
        clone.run("git", "reset", "-q", "--hard", "HEAD~1")
        clone.run("git", "clean", "-fdq")
        clone.run("dvc", "checkout", "-q", "--force")


def branch(clone: Clone) -> str:
    """The last of the chain that was applied."""
    found = [
        line for line in clone.run("git", "diff", "--name-only", "HEAD", "--", "metrics").splitlines() if "card" in line
    ]
    assert len(found) == 1, found
    return Path(found[0]).name.removesuffix(".card.json")


def test_search_refuses_before_any_compute(clone: Clone) -> None:
    def said(*options: str) -> str:
        output = clone.run("lowenergy", "search", *options, check=False)
        assert len(output.splitlines()) == 1, output
        return output

    assert "params.yaml has classifier, ebm" in said("--target", "jem")
    assert "give 5%" in said("--target", "ebm", "--max-loss", "much")
    assert "no such file" in said("--target", "ebm", "--space", "none.yaml")
    assert "--max-bytes 0" in said("--target", "ebm", "--max-bytes", "0")
    path = clone.path / "metrics/ebm/teacher.card.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps({k: v for k, v in json.loads(before).items() if k != "validation"}))
        assert "no validation figures to choose by" in said("--target", "ebm")
    finally:
        path.write_text(before)
    head = clone.run("git", "rev-parse", "HEAD").strip()
    ref = f"refs/exps/{head[:2]}/{head[2:]}/ebm-bytes-000"
    clone.run("git", "update-ref", ref, "HEAD")
    try:
        assert "ebm-bytes-000 is of an earlier search" in said("--target", "ebm")
    finally:
        clone.run("git", "update-ref", "-d", ref)
    clone.run("dvc", "exp", "run", "--queue", "--name", "mine", "-S", "prune.amount=0.6")
    try:
        assert "experiments are queued that are not this search's (mine)" in said("--target", "ebm")
    finally:
        clone.run("dvc", "queue", "remove", "--queued")
        clone.run("git", "clean", "-fdq")
