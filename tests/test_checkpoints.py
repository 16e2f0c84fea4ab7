"""What a killed stage has kept is taken up by the same stage only: when something it reads changes, it starts anew."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, with_changes
from ruamel.yaml import YAML

from lowenergy import data, networks, params
from lowenergy.base import checkpoint
from lowenergy.base.files import write_safetensors
from lowenergy.data import Split, Splits
from lowenergy.params import recipes
from lowenergy.scoring import generation
from lowenergy.storage import artifact
from lowenergy.training import Run, keep, loop, running
from lowenergy.training import run as of_runs
from stages import compress, evaluate, scorer, teacher

OWN = "import torch\n\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
TINY = {
    "networks": "nets",
    "classifier.architecture": {"name": "nets/own.py:net", "weights": "nets/own.safetensors"},
    "classifier.train.epochs": 2,
    "scorer.train.epochs": 2,
    "prune.finetune.epochs": 2,
    "distill.train.epochs": 2,
    "distill.student": {"name": "nets/own.py:net"},
    "ebm.architecture": {"name": "nets/own.py:net", "head": "mean"},
    "ebm.evaluate.samples": 100,
    "ebm.evaluate.chain_steps": 4,
}
WEIGHTS = {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}


class Killed(BaseException):
    """As by SIGKILL, in this process."""


@pytest.fixture
def here(
    tmp_path: Path, small_values: Any, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """A workspace in which stages end at their first checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)
    keep = loop.keep

    def keep_and_die(*arguments: Any) -> None:
        keep(*arguments)
        raise Killed

    monkeypatch.setattr(loop, "keep", keep_and_die)
    own, weights = Path("nets/own.py"), Path("nets/own.safetensors")
    own.parent.mkdir()
    own.write_text(OWN)
    write_safetensors(weights, WEIGHTS, {})
    change(small_values, TINY)
    few = Split(splits.train.images[:200], splits.train.labels[:200])
    data.save(replace(splits, train=few), data.SPLITS)
    model(0)
    before = dict(os.environ)  # a run sets some of it

    def killed(main: Callable[..., None], *arguments: str) -> None:
        with pytest.raises(Killed):
            main(*arguments)

    yield killed
    os.environ.clear()
    os.environ.update(before)


def change(values: Any = None, changes: Any = None) -> None:
    yaml = YAML(typ="safe")
    yaml.dump(with_changes(values or yaml.load(Path("params.yaml")), changes), Path("params.yaml"))
    recipes.write(params.load())


def changed_splits(**changes: Callable[[Splits], Any]) -> None:
    splits = data.load(data.SPLITS)
    data.save(replace(splits, **{key: make(splits) for key, make in changes.items()}), data.SPLITS)


def model(seed: int) -> None:
    """The source that methods compress."""
    p = params.load()
    spec = networks.Spec.of(p.classifier.architecture, (1, 8, 8), 10, None, None)
    network = networks.of_params(p.classifier.architecture, spec, seed=seed, where="classifier.architecture")
    network.get_parameter(next(name for name, _ in network.named_parameters())).data += seed
    artifact.save(artifact.dense(network, "classifier"), "models/classifier.safetensors", {"data": "digits"})


CHANGES: dict[str, Callable[[], None]] = {
    "labels": lambda: changed_splits(train=lambda s: Split(s.train.images, 9 - s.train.labels)),
    "labels that training is watched by": lambda: changed_splits(
        validation=lambda s: Split(s.validation.images, 9 - s.validation.labels)
    ),
    "images": lambda: changed_splits(train=lambda s: Split(255 - s.train.images, s.train.labels)),
    "classes": lambda: changed_splits(classes=lambda s: s.classes[::-1]),
    "normalisation": lambda: changed_splits(normalisation=lambda s: ([0.5], [0.3])),
    "weights": lambda: write_safetensors("nets/own.safetensors", {**WEIGHTS, "1.bias": torch.ones(10)}, {}),
    "own network": lambda: Path("nets/own.py").write_text(OWN + "# changed\n") and None,
    "rate": lambda: change(changes={"classifier.train.lr": 0.02, "scorer.train.lr": 0.02}),
    "seed": lambda: change(changes={"seed": 7}),
}
OF_METHODS: dict[str, Callable[[], None]] = {
    "source": lambda: model(1),
    "matching": lambda: change(changes={"classifier.matching.label_weight": 0.123}),
    "own params": lambda: change(changes={"prune.finetune.lr": 0.02, "distill.train.lr": 0.02}),
}
STAGES: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "teacher": (teacher.main, ("classifier",)),
    "scorer": (scorer.main, ()),
    "prune": (compress.main, ("classifier-prune",)),
    "distill": (compress.main, ("classifier-distill",)),
}


@pytest.mark.parametrize(
    ("stage", "what"),
    [
        *(("teacher", what) for what in CHANGES),
        ("scorer", "labels"),
        ("scorer", "classes"),
        *(("prune", what) for what in ("labels", "normalisation", *OF_METHODS)),
        *(("distill", what) for what in ("labels", "weights", "source")),
    ],
)
def test_a_stage_whose_inputs_have_changed_starts_anew(
    stage: str, what: str, here: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    main, arguments = STAGES[stage]
    here(main, *arguments)
    capfd.readouterr()
    (CHANGES | OF_METHODS)[what]()
    here(main, *arguments)
    said = capfd.readouterr().out
    assert said.count("belongs to other params, data or code; starting anew") == 1
    assert "resumed" not in said


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_stage_goes_on(stage: str, here: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    main, arguments = STAGES[stage]
    here(main, *arguments)
    change(changes={"data.test": 0.31})  # what it does not read
    Path("nets/__pycache__").mkdir(exist_ok=True)
    Path("nets/__pycache__/own.pyc").write_bytes(b"of another Python")
    here(main, *arguments)
    said = capfd.readouterr().out
    assert "starting anew" not in said and said.count("resumed at step") == 1


def test_a_run_is_made_without_a_trace_and_leaves_none_where_it_ends_well(tmp_path: Path) -> None:
    out = sys.stdout
    assert not Run("made", 0, [], root=tmp_path).curves.exists() and not list(tmp_path.iterdir())
    for error in (None, Killed):
        with suppress(Killed), running("made", 0, [], root=tmp_path) as run:
            assert run.curves.exists()
            keep(run, "fit", {"step": 1})
            if error:
                raise error
        assert run.checkpoint("fit").exists() == bool(error) and sys.stdout is out


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_belong_to_the_code_that_dvc_yaml_names(
    stage: str, here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    code: set[str] = set()
    monkeypatch.setattr(of_runs, "fingerprint", lambda inputs, places: code.update(places) or "same")
    here(STAGES[stage][0], *STAGES[stage][1])
    name = "compress" if stage in ("prune", "distill") else stage
    whole = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][name]
    deps = [dep for dep in whole.get("do", whole)["deps"] if dep.startswith("lowenergy/")]
    named = {dep.removeprefix("lowenergy/").replace("${item.kind}", "classifier") for dep in deps}
    named = {dep.replace("${item.by}", stage) for dep in named if not dep.startswith("scoring/")}  # after training
    assert code == named
    assert not code & {"reporting", "calls", "cli.py", "running", "scoring"}


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        (CHANGES["own network"], True),
        (CHANGES["seed"], True),
        (lambda: change(changes={"ebm.evaluate.chain_steps": 5}), True),
        (lambda: energy(2), True),
        (lambda: change(changes={"prune.amount": 0.1}), False),
    ],
)
def test_samples_of_a_changed_model_are_drawn_anew(
    change: Callable[[], None],
    anew: bool,
    here: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    kept = checkpoint.Checkpoint.keep
    steps = []

    def keep_and_die(self: checkpoint.Checkpoint, content: Any) -> None:
        kept(self, content)
        steps.append(content["step"])
        raise Killed

    monkeypatch.setattr(checkpoint.Checkpoint, "keep", keep_and_die)
    energy(1)
    p = params.load().scorer.architecture
    network = networks.of_params(p, networks.Spec.of(p, (1, 8, 8), 10, None, None), seed=0, where="scorer.architecture")
    artifact.save(artifact.dense(network.eval(), "scorer"), "models/scorer.safetensors", {"data": "digits"})
    images = data.load(data.SPLITS).validation.images
    generation.write_reference(network, {"train": images, "validation": images}, "models/reference.safetensors")
    here(evaluate.main, "ebm")
    change()
    here(evaluate.main, "ebm")
    assert ("starting anew" in capfd.readouterr().out) == anew
    assert steps == ([1, 1] if anew else [1, 2])


def energy(seed: int) -> None:
    p = params.load()
    spec = networks.Spec.of(p.ebm.architecture, (1, 8, 8), 10, "mean", None)
    network = networks.of_params(p.ebm.architecture, spec, seed=seed, where="ebm.architecture")
    provenance = {"data": "digits", "sampler": p.ebm.train.recorded_sampler}
    artifact.save(artifact.dense(network.eval(), "ebm"), "models/ebm.safetensors", provenance)
