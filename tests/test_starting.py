"""`lowenergy start`: what is seen, what is chosen, how long it is said to take."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML

from lowenergy import cli, params, profiles, starting
from lowenergy.base import memory
from lowenergy.base.errors import UserError
from lowenergy.networks import Spec
from lowenergy.starting import choose, look, measure
from lowenergy.starting.look import Images, Machine
from lowenergy.starting.measure import Cost

TWO_CORES = Machine(2, 16 * 2**30, None, "avx2")


def images(**changes: Any) -> Images:
    known: dict[str, Any] = {
        "section": {"source": "folder", "folder": "photos"},
        "train": 2000,
        "test": None,
        "validation": None,
        "classes": {str(i): 200 for i in range(10)},
        "side": 100,
        "smallest": 100,
        "channels": 3,
        "equal": 0,
        "reading": 1e-3,
    }
    return Images(**{**known, **changes})


def costs(second: float) -> Any:
    """Of a machine on which a step takes so many seconds for each thousand pixels and channel of width."""

    def measured(specs: Sequence[Spec]) -> Mapping[Spec, Cost]:
        def cost(spec: Spec) -> Cost:
            step = second * spec.image_size**2 * spec.width / 1e6
            return Cost(own=step, matching=1.2 * step, asked=0.2 * step, memory=2**29)

        return {spec: cost(spec) for spec in specs}

    return measured


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes in colour, one of them rare, one image twice."""
    generator = np.random.default_rng(0)
    for name, count in (("cats", 24), ("dogs", 4)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 255, (20 + i % 3, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    twice = tmp_path / "photos" / "cats" / "1.png"
    twice.with_name("copy.png").write_bytes(twice.read_bytes())
    return tmp_path / "photos"


def test_images_are_looked_at(photographs: Path) -> None:
    seen = look.images(str(photographs), "data/raw", {})
    assert seen.classes == {"cats": 25, "dogs": 4} and seen.train == 29 and seen.test is None
    assert (seen.side, seen.smallest, seen.channels, seen.equal) == (21, 20, 3, 1)
    said = " ".join(seen.lines())
    assert "in colour" in said and "1 images are copies" in said


def test_grey_photographs_are_grey(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            grey = np.full((16, 16, 1), 60 * i + (name == "b"), dtype=np.uint8).repeat(3, 2)
            Image.fromarray(grey).save(tmp_path / name / f"{i}.jpg")
    assert look.images(str(tmp_path), "data/raw", {}).channels == 1


def test_an_archives_one_folder_is_looked_into(photographs: Path, tmp_path: Path) -> None:
    outer = tmp_path / "archive"
    (outer / "inner").mkdir(parents=True)
    photographs.rename(outer / "inner" / "photos")
    assert look.images(str(outer), "data/raw", {}).classes == {"cats": 25, "dogs": 4}


def test_what_prepare_would_refuse_is_refused_at_once(photographs: Path) -> None:
    for i in range(2):
        (photographs / "dogs" / f"{i}.png").unlink()
    with pytest.raises(UserError, match="class dogs has 2 images; each needs at least 3"):
        look.images(str(photographs), "data/raw", {})


def test_a_picture_that_breaks_off_is_named(photographs: Path) -> None:
    for name in ("cats/3.png", "dogs/1.png"):
        whole = (photographs / name).read_bytes()
        (photographs / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"3\.png: not a readable image .*\(1 more files are like it\)"):
        look.images(str(photographs), "data/raw", {})


@pytest.mark.parametrize("place", ["nowhere/photos", "torchvision.datasets.Nothing", "gan"])
def test_what_is_not_there_is_one_line(place: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["start", place]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("budget", ["soon", "0m", "-3h"])
def test_a_budget_is_a_time(budget: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["start", "photos", f"--budget={budget}"])
    assert "give such as 45m or 2h" in capsys.readouterr().err


@given(st.floats(0.001, 20.0), st.floats(600, 40_000), st.sampled_from([8, 28, 32, 100]), st.integers(200, 60_000))
@settings(max_examples=60, deadline=None)
def test_a_plan_keeps_within_its_budget(second: float, budget: float, side: int, train: int) -> None:
    seen = images(side=side, train=train)
    try:
        plan = choose.plan(seen, TWO_CORES, budget, costs(second))
    except UserError as error:
        assert "too few" in str(error)
        return
    assert plan.seconds * choose.MARGIN <= budget * 1.001
    assert plan.size <= max(8, side) and plan.teachers[0] == "classifier"
    whole = profiles.over(plan.values, profiles.composed(profiles.DEFAULT))
    p = params.check(whole)  # valid, whatever was chosen
    assert list(p.teachers) == plan.teachers
    longest = max(stage.seconds for stage in plan.stages)
    assert longest <= plan.seconds <= sum(stage.seconds for stage in plan.stages) + 1e-6


def test_more_time_is_used() -> None:
    seen, machine = images(), TWO_CORES
    quick, slow = (choose.plan(seen, machine, budget, costs(4.0)) for budget in (3600, 4 * 3600))
    assert (slow.size, slow.effort) > (quick.size, quick.effort)
    alone = choose.plan(seen, machine, 0.3 * quick.seconds, costs(4.0))
    assert alone.size < quick.size or len(alone.teachers) < len(quick.teachers)


def test_of_very_many_images_some_are_taken() -> None:
    seen = images(train=400_000, side=64, classes={str(i): 40_000 for i in range(10)})
    plan = choose.plan(seen, TWO_CORES, 3600, costs(2.0))
    assert plan.values["data"]["limit"] == choose.LIMIT and plan.teachers == ["classifier", "ebm", "jem"]
    assert plan.size >= choose.SMALLEST
    assert "48,000 images to train on" in " ".join(plan.lines(seen))
    assert choose._fewer(seen)[1].test == choose.LIMIT, "a fifth of all images is split off before the limit counts"
    assert "limit" not in choose.plan(images(), TWO_CORES, 3600, costs(2.0)).values["data"]


def test_what_memory_does_not_hold_is_not_chosen() -> None:
    """Of an energy the inputs of matching are counted, too."""
    assert choose.plan(images(), TWO_CORES, 3600, costs(0.1)).size == 64
    small = replace(TWO_CORES, memory=1100 * 2**20)  # two stages of 512 MiB
    assert choose.plan(images(), small, 3600, costs(0.1)).size < 64
    assert choose.plan(images(), small, 3600, costs(0.1), size=64).teachers == ["classifier"]
    small = replace(small, memory=900 * 2**20)
    with pytest.raises(UserError, match=r"images of 64 pixels take 1\.\d GiB of memory, 2 stages .* smaller --size"):
        choose.plan(images(), small, 3600, costs(0.1), size=64)
    with pytest.raises(UserError, match=r"images of 16 pixels take 1\.\d GiB .* 0\.5 are free; free some"):
        choose.plan(images(), replace(TWO_CORES, memory=2**29), 3600, costs(0.1))


@pytest.mark.parametrize(
    ("given", "parsed"),
    [([], {}), (["split=letters"], {"split": "letters"}), (["a=1", "b=[1, x]"], {"a": 1, "b": [1, "x"]})],
)
def test_arguments_of_data_sets(given: list[str], parsed: dict[str, Any]) -> None:
    assert starting._parsed(given) == parsed
    with pytest.raises(UserError, match="--arguments letters: give name=value"):
        starting._parsed(["letters"])


@pytest.mark.parametrize("given", ["split={", "split=*a", "split=@a", "split=!!python/object:os.system", "a=a: b: c"])
def test_arguments_that_are_no_yaml_are_one_line(given: str) -> None:
    with pytest.raises(UserError, match="--arguments .*: not valid YAML: ") as error:
        starting._parsed([given])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["photos", "mnist"])
def test_arguments_are_for_data_sets_of_torchvision(place: str, photographs: Path) -> None:
    given = str(photographs) if place == "photos" else place
    with pytest.raises(UserError, match=f"--arguments are for torchvision.datasets.…; .*{place} takes none"):
        look.images(given, "data/raw", {"split": "letters"})


def test_photographs_among_the_pipelines_files_are_refused(photographs: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(photographs.parent)
    (photographs.parent / "models").mkdir()
    photographs.rename("models/photos")
    with pytest.raises(UserError, match="models/photos: the pipeline writes and deletes models; move the images"):
        look.images("models/photos", "data/raw", {})


def test_teachers_go_before_images_become_too_small() -> None:
    plan = choose.plan(images(side=100), TWO_CORES, 600, costs(4.0))
    assert plan.size >= choose.SMALLEST and len(plan.teachers) < 3


def test_images_are_counted_as_they_are_split(tmp_path: Path) -> None:
    of_three = images(train=300, classes={str(i): 3 for i in range(100)})
    assert choose._counts(of_three) == (100, [100, 100])
    of_parts = images(train=40, test=7, validation=9, classes={"a": 20, "b": 20})
    assert choose._counts(of_parts) == (40, [7, 9])


def test_no_branch_that_guesses_ends_the_run() -> None:
    plan = choose.plan(images(), TWO_CORES, 7200, costs(2.0))
    assert all(entry["accept_chance"] for entry in plan.values["branches"].values())


def test_two_stages_at_a_time_take_as_long_as_the_longer_half() -> None:
    of = choose.Stage
    stages = [of("a", 3, 0), of("b", 2, 0), of("c", 2, 0, ["b"]), of("end", 1, 0, ["a", "c"])]
    assert choose._makespan(stages, 2) == 5
    assert choose._makespan(stages, 1) == 8


def test_the_file_is_written_and_nothing_of_the_users_is_lost(
    photographs: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "measure", lambda specs, threads, jobs: costs(0.01)(specs))
    starting.start(str(photographs), 7200, size=16, root="data/raw", force=False)
    said = capsys.readouterr().out
    p = params.load()
    assert p.data.folder == str(photographs) and p.data.image_size == 16 and p.data.channels == 3
    assert all(f"compress@{branch}" in said for branch in p.branches)
    values = YAML(typ="safe").load(Path("params.yaml"))
    values["seed"] = 7
    YAML().dump(values, Path("params.yaml"))
    with pytest.raises(UserError, match="values of your own.*more"):  # before anything is looked at or measured
        starting.start("nowhere", 7200, size=16, root="data/raw", force=False)
    with pytest.raises(UserError, match="--size 600: give 8 to 512 pixels"):
        starting.start(str(photographs), 7200, size=600, root="data/raw", force=True)
    assert params.load().seed == 7
    starting.start(str(photographs), 7200, size=16, root="data/raw", force=True)
    assert params.load().seed == 0


def test_what_a_process_held_does_not_count_for_those_that_it_starts() -> None:
    held = bytearray(2**28)
    held[:: 2**12] = b"x" * 2**16  # so that the system really gives them
    ask = "from lowenergy.base import memory; print(memory.peak())"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, cwd=ROOT)
    assert memory.peak() > len(held) > int(done.stdout) > 2**22


@pytest.mark.slow
def test_steps_are_really_taken() -> None:
    small, large = (Spec("cnn", width, "3x3", "swish", "none", 1, 16, 10, "mean") for width in (2, 32))
    found = measure.measure([small, large], 1, 1)
    assert found[large].own > found[small].own > 0
    assert found[large].asked < found[large].own
    assert found[small].memory > 2**27
