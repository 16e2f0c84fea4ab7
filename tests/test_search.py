"""A search finds what is small and good enough, goes on after a kill, and refuses what cannot be: without any training,
then once with all of it."""

import json
import math
import re
import shutil
import signal
import subprocess
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from conftest import Clone, with_changes
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from test_running import Toy

from lowenergy import params
from lowenergy.base.errors import UserError
from lowenergy.running import pipeline
from lowenergy.running.crew import RunError
from lowenergy.searching import outcome, session, trials
from lowenergy.searching import space as spaces
from lowenergy.searching.goal import Goal, GoalError, Limit, too_few
from lowenergy.searching.study import Search, SearchError
from lowenergy.searching.trials import Entries, Failed

SPACE = {
    "chains": [["prune"], ["quantize"], ["prune", "quantize"]],
    "parameters": {"prune.amount": {"low": 0.1, "high": 0.9}, "quantize.weight_bits": {"low": 2, "high": 8}},
}
TEACHER = {
    "validation": {"accuracy": 0.9, "accuracy_interval": [0.88, 0.92], "images": 1000},
    "accuracy": 0.9,
    "size_bytes": 100_000,
    "macs": 1000,
}
SURE = 0.005  # of what trials have lost


def written(path: Path, content: Any) -> Path:
    YAML().dump(content, path)
    return path


@pytest.fixture
def space(tmp_path: Path, values: Any) -> spaces.Space:
    return spaces.load(written(tmp_path / "search.yaml", SPACE), "classifier", values)


def card(wanted: Entries, test_accuracy: float = 0.5) -> dict[str, Any]:
    """What such a model might be like: each bit and each weight helps, up to a point."""
    bits = float(own(wanted, "quantize", "weight_bits") or 32)
    kept = 1 - float(own(wanted, "prune", "amount") or 0)
    accuracy = 0.9 - 0.2 * math.exp(-2 * (bits - 2)) - 0.3 * math.exp(-12 * kept)
    size = round(100_000 * kept * bits / 32)
    cost = {"size_bytes": size, "compression_ratio": 100_000 / size, "macs": 1000 * kept}
    lost = {"accuracy": 0.9 - accuracy, "accuracy_interval": [0.9 - accuracy - SURE, 0.9 - accuracy + SURE]}
    figures = {"accuracy": accuracy, "accuracy_interval": [accuracy - 0.02, accuracy + 0.02], "lost": lost}
    return {"validation": figures, "accuracy": test_accuracy, **cost}


def own(wanted: Entries, method: str, name: str) -> Any:
    """A value of the trial's branch by this method; None without."""
    return next((entry.get(name) for entry in wanted.values() if entry["by"] == method), None)


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, space: spaces.Space, values: Any) -> Any:
    """Makes a search whose trials are measured at once."""
    ran: list[str] = []

    def run(repo: Any, wanted: dict[str, Entries], target: str, **options: Any) -> dict[str, Any]:
        ran.extend(wanted)
        found: dict[str, Any] = {}
        for name, trial in wanted.items():
            if len(ran) > dies_after[0]:
                raise KeyboardInterrupt
            bad = float(own(trial, "prune", "amount") or 0) > 0.85
            found[name] = Failed("too many") if bad else card(trial, test_accuracy[0])
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
    assert best.figures["validation"]["accuracy"] - SURE >= 0.95 * 0.9
    assert all(best.cost <= result.cost for result in found.results() if result.within)
    assert best.cost < 6000 < min(r.cost for r in found.results()[:2])  # better than what it began with
    front = found.front()
    assert [r.cost for r in front] == sorted(r.cost for r in front)
    assert [r.loss for r in front] == sorted((r.loss for r in front), reverse=True)


def test_no_trial_is_drawn_twice(search: Any) -> None:
    found = go(search("twice"), 30)
    drawn = [json.dumps(result.values, sort_keys=True) for result in found.results()]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.slow
def test_a_chain_that_is_best_and_soon_exhausted_ends_no_search(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, values: Any
) -> None:
    def run(repo: Any, wanted: dict[str, Entries], target: str, **options: Any) -> dict[str, Any]:
        small = {"size_bytes": 1000, "compression_ratio": 100, "macs": 10}
        return {name: card(t) | (small if own(t, "distill", "student") else {}) for name, t in wanted.items()}

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
    outcome.end(tight, "", None)
    shown = capsys.readouterr().out
    assert "No trial kept the limits (classifier: least bytes, at most 1 % of the teacher's figure lost" in shown
    assert len(shown[shown.index("The nearest:") :].splitlines()) == 4
    few = go(search("macs", Goal("macs", max_loss=Limit.parse("2.5"))), 16)
    assert few.winner() and few.winner().cost < 500
    outcome.write(few)
    page = few.path.with_suffix(".html").read_text()
    assert "multiply-accumulates</text>" in page and "bytes on disk" not in page
    on_line = re.findall(r'<g class="on"><title>(\S+)', page)
    assert {*on_line} - {"teacher"} == {trial.name for trial in few.front()}, "the table below has these"


def test_what_is_printed_and_written(search: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = go(search("shown"))
    best = found.winner()
    outcome.end(found, best.name, card({}, 0.8765))
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
    def run(repo: Any, wanted: dict[str, Entries], target: str, **options: Any) -> dict[str, Any]:
        cards = {name: card(trial) for name, trial in wanted.items()}
        for found in cards.values():
            fid = 2 - found["validation"]["accuracy"]
            lost = {"fid": fid - 1.1, "fid_interval": [fid - 1.11, fid - 1.09]}
            found["validation"] = {"fid": fid, "fid_interval": [fid - 0.02, fid + 0.02], "lost": lost}
        return cards

    monkeypatch.setattr(trials, "run", run)
    space = spaces.load(written(tmp_path / "search.yaml", SPACE), "ebm", values)
    teacher = TEACHER | {"validation": {"fid": 1.1, "fid_interval": [1.0, 1.2], "samples": 500}, "fid": 1.0}
    found = go(Search("drawn", "ebm", Goal(max_loss=Limit.parse("10%")), space, values, teacher, root=tmp_path), 12)
    outcome.end(found, "drawn-000", {"fid": 1.05} if found.winner() else None)
    assert "FID 1.05" in capsys.readouterr().out
    page = found.path.with_suffix(".html").read_text()
    assert "validation FID, lower is better" in page and page.count("<circle") == len(found.results()) + 1


def test_a_trial_that_could_not_be_run_is_not_a_bad_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a dead worker was a trial without hope, never tried again."""
    ran = [
        SimpleNamespace(experiment="one", failed={"mid": "[Errno 28] No space left on device"}, lost={"mid"}),
        SimpleNamespace(experiment="two", failed={"mid": "ValueError: too few"}, lost=set[str]()),
    ]
    recorded: list[set[str]] = []
    for name, function in {
        "revisions": lambda *_: {},
        "waiting": lambda _: [SimpleNamespace(name=each.experiment) for each in ran],
        "ours": lambda _: nullcontext(),
        "run_entries": lambda *_, **__: ran,
        "record": lambda _, names: recorded.append({*names}),
    }.items():
        monkeypatch.setattr(trials.experiments, name, function)
    monkeypatch.setattr(trials, "_dvc", lambda *_: None)
    wanted: dict[str, Any] = {name: {"branch": {}} for name in ("one", "two", "three")}
    monkeypatch.setattr(trials, "_queue", lambda *_: None)
    monkeypatch.setattr(trials.experiments, "worker_ended", lambda _: True)
    with pytest.raises(UserError, match=r"^one: \[Errno 28\] No space left on device; the same command goes on$"):
        trials.run(None, wanted, "classifier", jobs=1)
    assert recorded == [{"three"}]


def test_another_space_is_another_search(search: Any, space: spaces.Space, values: Any, tmp_path: Path) -> None:
    go(search("mine"), 4)
    with pytest.raises(SearchError, match=r"begun with other limits; give this search another --name"):
        search("mine", Goal())
    with pytest.raises(SearchError, match=r"begun with other params\.yaml"):
        changed = with_changes(values, {"prune.rounds": 2})
        Search("mine", "classifier", Goal(max_loss=Limit.parse("5%")), space, changed, TEACHER, root=tmp_path)
    winner = spaces.entries(values, "classifier", ["prune", "quantize"], {"prune.amount": 0.2})
    applied = spaces.with_entries(values, winner)  # as a winner leaves it
    goal = Goal(max_loss=Limit.parse("5%"))
    assert Search("mine", "classifier", goal, space, applied, TEACHER, root=tmp_path).results()
    other = space.model_copy(update={"chains": [["prune"]]})
    with pytest.raises(SearchError, match="begun with other search space"):
        Search("mine", "classifier", Goal(max_loss=Limit.parse("5%")), other, values, TEACHER, root=tmp_path)


def test_figures_of_other_images_or_teachers_are_not_mixed(
    search: Any, space: spaces.Space, values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search("mine", images="these")
    assert search("mine", images="these").begun is False
    with pytest.raises(SearchError, match="begun with other images"):
        search("mine", images="others")
    goal = Goal(max_loss=Limit.parse("5%"))
    better = TEACHER | {"validation": TEACHER["validation"] | {"accuracy": 0.95}}
    with pytest.raises(SearchError, match="begun with other teacher"):
        Search("mine", "classifier", goal, space, values, better, images="these", root=tmp_path)
    monkeypatch.chdir(Toy.make(tmp_path / "toy").place)
    before = session._images(pipeline.opened(), "work.py")
    Path("work.py").write_text("print('other images')")
    assert before and session._images(pipeline.opened(), "./work.py") not in ("", before)
    assert session._images(pipeline.opened(), "nothing") == ""


@given(lost=st.integers(-500, 1000).map(lambda n: n / 1000 + 1e-7), teacher=st.floats(0.1, 1), share=st.floats(0, 0.5))
def test_limits_are_what_they_say(lost: float, teacher: float, share: float) -> None:
    kept = Limit.parse(f"{100 * share}%").excess("accuracy", lost, teacher) <= 0
    assert kept == (lost <= share * teacher) or math.isclose(lost, share * teacher)
    kept = Limit.parse(f"{share}").excess("fid", lost, teacher) <= 0
    assert kept == (lost <= share) or math.isclose(lost, share)
    assert Limit.parse("1.5").excess("accuracy", 0.01, teacher) == pytest.approx(-0.5)


def test_a_lucky_figure_keeps_no_limit() -> None:
    """What counts is what may have been lost, as far as the images can tell."""
    figures = {"validation": {"accuracy": 0.9, "lost": {"accuracy": 0.0, "accuracy_interval": [-0.06, 0.06]}}}
    goal = Goal(max_loss=Limit.parse("5"))
    assert goal.violations(figures, TEACHER) == [pytest.approx(1.0)]
    figures["validation"]["lost"]["accuracy_interval"] = [-0.05, 0.05]
    assert goal.violations(figures, TEACHER) == [pytest.approx(0.0)]


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x"])
def test_a_name_becomes_a_file_s(name: str) -> None:
    with pytest.raises(UserError, match="--name"):
        session.search("ebm", name=name)


def test_limits_that_the_images_cannot_show_are_named() -> None:
    digits = TEACHER | {"validation": {"accuracy": 0.97, "accuracy_interval": [0.93, 0.99], "images": 143}}
    (said,) = too_few(Goal(max_loss=Limit.parse("1")), digits)
    assert said.startswith("143 validation images cannot show a loss below 1.4 points of accuracy; hold out more")
    assert too_few(Goal(max_loss=Limit.parse("1%")), digits)
    assert not too_few(Goal(max_loss=Limit.parse("1.4")), digits) and not too_few(Goal(), digits)


def test_a_larger_model_that_cannot_be_told_apart_is_not_on_the_front(search: Any) -> None:
    found = go(search("front"), 24)
    front = found.front()
    lost = [result.figures["validation"]["lost"]["accuracy"] for result in front]
    assert all(a - b > SURE * math.sqrt(2) for a, b in pairwise(lost))
    nearly = [r for r in found.results() if r not in front and r.loss < min(f.loss for f in front)]
    assert nearly, "better than all of the front, by less than can be told"


def test_branches_of_trials(values: Any) -> None:
    def made(chain: list[str], **drawn: Any) -> dict[str, Any]:
        return spaces.entries(values, "ebm", chain, {name.replace("__", "."): value for name, value in drawn.items()})

    whole = made(
        ["distill", "prune", "quantize"], distill__student__width=4, prune__amount=0.5, quantize__weight_bits=3
    )
    first, second, third = whole
    assert re.fullmatch(r"search-ebm-distill-prune-[0-9a-f]{6}", second)
    assert whole[first] == {"target": "ebm", "start": "ebm", "by": "distill", "student": {"width": 4}}
    assert whole[third] == {"target": "ebm", "start": second, "by": "quantize", "weight_bits": 3}
    other = made(
        ["distill", "prune", "quantize"], distill__student__width=4, prune__amount=0.5, quantize__weight_bits=4
    )
    assert list(other)[:2] == [first, second] and list(other)[2] != third, "what begins alike is made once"
    assert list(made(["distill"], distill__student__width=8)) == ["ebm-distill"], "which params.yaml has"
    assert next(iter(made(["distill", "pq"]))) == "ebm-distill"
    p = params.check(spaces.with_entries(values, whole))
    assert p.chain(third) == ["ebm", first, second, third]
    assert p.branches[first].params.student.width == 4 and p.branches[first].params.student.name == "cnn"


def test_added_methods_are_searched_like_the_others(
    values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Halve(params.Method):
        times: int = 1

    known = params.methods()
    monkeypatch.setattr("lowenergy.params.entries.methods", lambda: {**known, "halve": Halve})
    more = {**values, "halve": {"times": 1}}
    own = {"chains": [["halve"], ["halve", "prune"]], "parameters": {"halve.times": [1, 2]}}
    space = spaces.load(written(tmp_path / "search.yaml", own), "ebm", more)
    assert space.first(more)[0] == {"chain": "halve", "halve.times": 1}
    (name,) = made = spaces.entries(more, "ebm", ["halve"], {"halve.times": 2})
    assert made[name] == {"target": "ebm", "start": "ebm", "by": "halve", "times": 2}
    own["parameters"] = {"halve.times": ["many"]}
    with pytest.raises(spaces.SpaceError, match=r"halve\.times = 'many'"):
        spaces.load(written(tmp_path / "search.yaml", own), "ebm", more)


@pytest.mark.parametrize("text", ["", "x", "-1", "5 %%", "nan%", "inf"])
def test_bad_limits(text: str) -> None:
    with pytest.raises(GoalError, match="give 5%"):
        Limit.parse(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": {"prune.amonut": [1]}}, r"prune\.amonut is no parameter of a method"),
        ({"parameters": {"classifier.train.lr": [1]}}, r"classifier\.train\.lr is no parameter of a method"),
        ({"parameters": {"prune.start": ["ebm"]}}, r"prune\.start is no parameter of a method"),
        ({"parameters": {"prune.amount": {"low": 0.1, "high": 1.5}}}, r"prune\.amount = 1\.5"),
        ({"parameters": {"prune.amount": {"low": 0.5, "high": 0.1}}}, r"low = 0\.5 is not below high = 0\.1"),
        ({"parameters": {"prune.kind": ["structred"]}}, r"prune\.kind = 'structred'"),
        ({"chains": [["pq", "quantize"]]}, "chain pq → quantize cannot be: .*has been coded by pq"),
        ({"chains": [["shrink"]]}, "chain shrink: shrink is none of prune"),
        ({"chains": [["prune", "prune"]]}, "a method twice"),
        ({"chains": []}, "chains"),
        ({"chainz": []}, "chainz"),
        (
            {"parameters": {"prune.retrain.epochs": {"low": 0, "high": 6, "step": 1.5}}},
            r"epochs = 1\.5: input should be",
        ),
        ({"parameters": {"quantize.keep_float": [[], ["fc"]]}}, "keep_float: the values of a list are numbers, texts"),
        ({"parameters": {"prune.amount": 0.5}}, r"parameters\.prune\.amount: expected a list of values, or low and"),
        ({"parameters": ["prune.amount"]}, "parameters: expected names of parameters, found list"),
        ({"targets": {"clasifier": {"chains": [["pq"]]}}}, "targets: clasifier is no teacher of params.yaml and no"),
        ({"parameters": {3: {"low": 1, "high": 2}}}, r"parameters\.3.*: Input should be a valid string"),
        ({"targets": ["classifier"]}, "targets: expected names of teachers or kinds, found list"),
        ({"targets": {"classifier": ["prune"]}}, r"targets\.classifier: expected chains or parameters, found list"),
    ],
)
def test_bad_spaces_are_one_line(tmp_path: Path, values: Any, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "search.yaml", {**SPACE, **change})
    with pytest.raises(spaces.SpaceError, match=message) as error:
        spaces.load(path, "classifier", values)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_step_that_is_no_whole_number_is_taken(tmp_path: Path, values: Any) -> None:
    rates = {"prune.retrain.lr": {"low": 1, "high": 3, "step": 0.5}}
    path = written(tmp_path / "search.yaml", {"chains": [["prune"]], "parameters": rates})
    space, study = spaces.load(path, "classifier", values), optuna.create_study()
    drawn = {space.draw(study.ask())[1]["prune.retrain.lr"] for _ in range(60)}
    assert drawn == {1.0, 1.5, 2.0, 2.5, 3.0}


def test_what_ships_is_a_space_for_every_target(values: Any, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[1] / "search.yaml"
    for target in ("classifier", "ebm", "jem"):
        for first in spaces.load(shipped, target, values).first(values):
            chain = first.pop("chain").split(spaces.ARROW)
            assert not spaces.refused(values, spaces.entries(values, target, chain, first))
    with pytest.raises(UserError, match="no such file"):
        spaces.load(tmp_path / "none.yaml", "ebm", values)
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        spaces.load(tmp_path / "bad.yaml", "ebm", values)


@pytest.mark.slow
def test_search_end_to_end(clone: Clone) -> None:
    """Real experiments: killed in the middle, gone on with, the winner applied; nothing else in the workspace moves."""
    space = {
        "chains": [["prune"], ["quantize"], ["prune", "quantize"]],
        "parameters": {"prune.amount": [0.55, 0.75], "quantize.weight_bits": [5, 7]},
    }
    written(clone.path / "small.yaml", space)
    command = ["lowenergy", "search", "--target", "classifier", "--max-loss", "30%", "--space", "small.yaml"]
    command += ["--trials", "4", "--jobs", "2"]
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
        assert sum(bool(re.fullmatch(r"classifier-bytes-\d{3}", str(name))) for name in found) == 4, output
        applied = YAML(typ="safe").load(clone.path / "params.yaml")["branches"]
        added = [name for name in applied if name.startswith("search-classifier-")]
        assert 1 <= len(added) <= 2 and list(applied)[-len(added) :] == added
        assert "Data and pipelines are up to date" in clone.run("dvc", "status", f"evaluate@{added[-1]}")
        rows = (clone.path / "searches/classifier-bytes.csv").read_text().splitlines()
        assert len(rows) == 5
        again = clone.run(*command)  # nothing is left to try
        assert "running" not in again and names[0] in again
    finally:
        clone.run("dvc", "queue", "remove", "--all", check=False)
        clone.run("dvc", "exp", "remove", "-A", check=False)
        shutil.rmtree(clone.path / "searches", ignore_errors=True)
        clone.run("git", "reset", "-q", "--hard", "HEAD~1")
        clone.run("git", "clean", "-fdq")
        clone.run("dvc", "checkout", "-q", "--force")


def test_a_lock_of_dvcs_own_worker_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["ERROR: Unable to acquire lock. Most likely", "ERROR: 'x' is busy, it is being blocked by:", "applied"]
    answers = [subprocess.CompletedProcess([], int(text != "applied"), text) for text in said]
    monkeypatch.setattr(trials.subprocess, "run", lambda *_, **__: answers.pop(0))
    monkeypatch.setattr(trials.time, "sleep", lambda _: None)
    repo = SimpleNamespace(root_dir=".")
    assert trials._dvc(repo, "exp", "apply", "x") == "applied" and not answers
    answers.append(subprocess.CompletedProcess([], 1, "ERROR: no such experiment"))
    with pytest.raises(RunError, match="`dvc exp apply x` failed: ERROR: no such experiment"):
        trials._dvc(repo, "exp", "apply", "x")


@pytest.mark.slow
def test_search_refuses_before_any_compute(clone: Clone) -> None:
    def said(*options: str) -> str:
        output = clone.run("lowenergy", "search", *options, check=False)
        assert len(output.splitlines()) == 1, output
        return output

    assert "params.yaml has classifier, ebm" in said("--target", "jem")
    assert "give 5%" in said("--target", "ebm", "--max-loss", "much")
    assert "no such file" in said("--target", "ebm", "--space", "none.yaml")
    assert "--max-bytes 0" in said("--target", "ebm", "--max-bytes", "0")
    path = clone.path / "cards/ebm.json"
    before = path.read_text()
    try:
        path.unlink()  # else it would be written into DVC's cache
        path.write_text(json.dumps({k: v for k, v in json.loads(before).items() if k != "validation"}))
        assert "no validation figures to choose by" in said("--target", "ebm")
    finally:
        clone.run("dvc", "checkout", "-q", "--force")
    head = clone.run("git", "rev-parse", "HEAD").strip()
    ref = f"refs/exps/{head[:2]}/{head[2:]}/ebm-bytes-000"
    clone.run("git", "update-ref", ref, "HEAD")
    try:
        assert "ebm-bytes-000 is of an earlier search" in said("--target", "ebm")
    finally:
        clone.run("git", "update-ref", "-d", ref)
    clone.run("dvc", "exp", "run", "--queue", "--name", "mine", "-S", "pq.codewords=16")
    try:
        assert "experiments are queued that are not this search's (mine)" in said("--target", "ebm")
    finally:
        clone.run("dvc", "queue", "remove", "--queued")
        clone.run("git", "clean", "-fdq")


def test_the_least_memory_is_sought_below_a_limit_too() -> None:
    assert Goal("ram", max_ram=32_000).planned_for is True, "not the fastest plan that the limit allows"
    assert Goal("bytes", max_ram=32_000).planned_for == 32_000
    assert Goal("bytes").planned_for is False and Goal("flash").planned_for is True
