"""Documents claim what records say: their tables are made from the records, and a record names code that is here."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import tables

OF_WORDS = {  # tables that claim nothing was measured, by the beginning of their heads
    *(("docs/architectures.md", "name"), ("docs/clusters.md", "what | then"), ("docs/deploy.md", "target | inputs")),
    *(("docs/format.md", "header key"), ("docs/format.md", "kind | parts"), ("docs/device.md", "file | holds")),
    *(("docs/networks.md", "method | works on"), ("docs/networks.md", "your network has | then")),
    *(("docs/results.md", "JEM of width 64 | EBM"),),
}


def test_tables_are_those_of_the_records() -> None:
    stale = [path.name for path in tables.documents() if tables.filled(path.read_text(), path.name) != path.read_text()]
    assert not stale, "python benchmarks/tables.py"


def test_every_table_of_figures_is_made_from_a_record() -> None:
    by_hand = []
    for path in tables.documents():
        lines = tables.MARKED.sub("", path.read_text()).splitlines()
        name = str(path.relative_to(ROOT))
        heads = [lines[i - 1].strip("| ") for i, line in enumerate(lines) if i and re.fullmatch(r"\|[-:| ]+\|", line)]
        by_hand += [(name, h) for h in heads if not any(name == d and h.startswith(start) for d, start in OF_WORDS)]
    assert not by_hand


def test_every_table_that_is_made_stands_in_a_document() -> None:
    marked = {found[2] for path in tables.documents() for found in tables.MARKED.finditer(path.read_text())}
    assert marked == set(tables.TABLES)


@pytest.mark.parametrize("pair", [("classifier-prune", "classifier-pq"), ("ebm", "ebm-quantize")])
def test_figures_in_another_row_are_found(pair: tuple[str, str]) -> None:
    text = (ROOT / "docs/results.md").read_text()
    first, second = (next(line for line in text.splitlines() if line.startswith(f"| {name} |")) for name in pair)
    cells = [line.split("|", 2)[2] for line in (first, second)]
    swapped = text.replace(first, f"| {pair[0]} |{cells[1]}").replace(second, f"| {pair[1]} |{cells[0]}")
    assert swapped != text
    assert tables.filled(swapped, "docs/results.md") == text


def test_an_altered_figure_is_found() -> None:
    text = (ROOT / "docs/results.md").read_text()
    spans = [(found.end(1), found.start(3)) for found in tables.MARKED.finditer(text)]
    figures = [f for f in re.finditer(r"\d[\d,.]*\d", text) if any(start < f.start() < end for start, end in spans)]
    assert len(figures) > 50
    for figure in figures[::40]:
        digit = int(text[figure.end() - 1])
        altered = text[: figure.end() - 1] + str((digit + 3) % 10) + text[figure.end() :]
        assert tables.filled(altered, "docs/results.md") == text, figure[0]


def test_a_table_that_is_not_made_is_an_error() -> None:
    with pytest.raises(LookupError, match="unheard-of"):
        tables.filled("<!-- table: unheard-of -->\n<!-- end -->", "README.md")


def test_a_row_that_is_not_in_the_record_is_an_error() -> None:
    with pytest.raises(LookupError, match="0 rows"):
        tables.row("cifar100_bars", label="wished for")


def git(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)


def test_records_name_commits_of_this_repository() -> None:
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("no history to look into")
    missing = []
    for path in sorted((ROOT / "benchmarks/records").glob("*.json")):
        for run in json.loads(path.read_text())["runs"]:
            for commit in {run["commit"], *(row.get("commit", run["commit"]) for row in run["rows"])}:
                if git("merge-base", "--is-ancestor", commit.removesuffix("-dirty"), "HEAD").returncode:
                    missing.append(f"{path.name}: {commit}")
    assert not missing


def test_every_record_can_be_found() -> None:
    text = (ROOT / "benchmarks/README.md").read_text()
    assert not [path.stem for path in (ROOT / "benchmarks/records").glob("*.json") if f"`{path.stem}`" not in text]


def test_every_run_says_how_it_was_made() -> None:
    for path in sorted((ROOT / "benchmarks/records").glob("*.json")):
        for run in json.loads(path.read_text())["runs"]:
            assert run.keys() >= {"command", "commit", "date", "machine", "seconds", "rows"}, path.name
            script = run["command"].split()[1]
            assert (ROOT / script).is_file(), f"{path.name}: {script}"
