"""Documents claim what records say: each figure of a table comes from one, or the table is known to have none."""

import json
import re
from typing import Any

import pytest
from conftest import ROOT

# A table by its document and the beginning of its head -> the files that its figures come from.
BARS = ("benchmarks/README.md", "wanted | reached")  # each row names its own
RECORDED = {
    ("README.md", "branch | classifier: accuracy"): ["metrics/*/*.card.json"],
    ("README.md", "CIFAR-100, ResNet-18"): ["benchmarks/records/cifar100_bars.json"],
    ("docs/int8.md", "CIFAR-100, ResNet-18, QAT"): ["benchmarks/records/cifar100_bars.json"],
    ("docs/int8.md", "CIFAR-100, ResNet-18, calibrated"): ["benchmarks/records/cifar100_mixed_bits.json"],
    ("docs/energies.md", "MNIST, objective"): ["benchmarks/records/energy_objectives.json"],
    ("docs/energies.md", "MNIST, the study's ResNet-18"): ["benchmarks/records/mnist_study.json"],
    ("docs/energies.md", "CIFAR-100, energies"): ["benchmarks/records/cifar100_energy.json"],
    ("docs/product-quantization.md", "CIFAR-100, ResNet-18"): ["benchmarks/records/cifar100_bars.json"],
    ("docs/product-quantization.md", "preset, 1,900 images"): ["benchmarks/records/cifar100_presets.json"],
    ("docs/pruning.md", "CIFAR-100, ResNet-18"): ["benchmarks/records/cifar100_bars.json"],
    ("README.md", "MNIST | parameters"): ["benchmarks/records/shipped_mnist.json", "pretrained/mnist-*.json"],
    ("docs/networks.md", "network | teacher"): ["benchmarks/records/any_network.json"],
    ("docs/energies.md", "CIFAR-100, images"): ["benchmarks/records/cifar100_scale.json"],
    ("docs/energies.md", "threads, batch | ours"): ["benchmarks/records/sampler_peers.json"],
    ("docs/energies.md", "chains of an EBM"): ["benchmarks/records/chain_lengths.json"],
    ("docs/int8.md", "MNIST, the shipped 77 k EBM"): ["benchmarks/records/mnist_retrain.json"],
    ("docs/product-quantization.md", "MNIST EBM"): ["benchmarks/records/mnist_retrain.json"],
    ("docs/search.md", "digits | models"): ["benchmarks/records/search_fronts.json"],
    ("docs/deploy.md", "model | stored"): ["benchmarks/records/onnx_parity.json"],
    ("docs/scaling.md", "command | seconds"): ["benchmarks/records/side_by_side.json"],
    ("docs/scaling.md", "stages | command"): ["benchmarks/records/run_overhead.json"],
    ("docs/scaling.md", "training | one"): ["benchmarks/records/data_parallel.json"],
    ("docs/pruning.md", "| | 10 %"): ["docs/sweeps/*.csv"],
    ("docs/pruning.md", "MNIST EBM, seven epochs"): ["benchmarks/records/mnist_prune_study.json"],
    ("docs/pruning.md", "sparsity | 0"): ["benchmarks/records/sparse_sizes.json"],
    ("docs/product-quantization.md", "parts | top-1"): ["docs/pq_ablation.csv"],
}
# Measured before there were records. None may be added; one that is measured again moves up.
WITHOUT = {
    ("docs/energies.md", "77 k-parameter EBM"),
    ("docs/int8.md", "MNIST, `lowenergy profile mnist`"),
    ("docs/int8.md", "step | 1"),
    ("docs/int8.md", "weights | PTQ"),
    ("docs/int8.md", "forward pass, batch 64"),
    ("docs/int8.md", "Langevin step, batch 64"),
    ("docs/product-quantization.md", "| bytes | ratio"),
    ("docs/product-quantization.md", "method | seconds"),
    ("docs/students.md", "student | parameters"),
    ("docs/students.md", "link | parameters"),
    ("docs/students.md", "chain | classifier"),
}
OF_WORDS = {  # tables that claim nothing was measured
    *(("docs/architectures.md", "name"), ("docs/clusters.md", "what | then"), ("docs/deploy.md", "target | inputs")),
    *(("docs/errors.md", "tried"), ("docs/format.md", "header key"), ("docs/format.md", "kind | parts")),
    *(("docs/networks.md", "branch | layers"), ("docs/pruning.md", "parameter"), ("docs/search.md", "option")),
    ("docs/students.md", "parameter | meaning"),
}
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
FIGURE = re.compile(NUMBER.pattern.join("()") + r"(×?)")


def tables() -> list[tuple[str, str, list[str]]]:
    """Document, head, rows of all tables."""
    found = []
    for path in [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        lines = path.read_text().splitlines()
        for i, line in enumerate(lines[1:], 1):
            if re.fullmatch(r"\|[-:| ]+\|", line):
                rows = []
                for row in lines[i + 1 :]:
                    if not row.startswith("|"):
                        break
                    rows.append(row)
                head = lines[i - 1].strip().removeprefix("|").removesuffix("|").strip()
                found.append((str(path.relative_to(ROOT)), head, rows))
    return found


def known(document: str, head: str, places: Any) -> tuple[str, str] | None:
    return next((p for p in places if p[0] == document and p[1] and head.startswith(p[1])), None)


def numbers(value: Any) -> list[float]:
    """All numbers of a record, those in names as well."""
    if isinstance(value, dict):
        return [n for key, part in value.items() for n in (*numbers(str(key)), *numbers(part))]
    if isinstance(value, list):
        return [n for part in value for n in numbers(part)]
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int | float):
        return [float(value)]
    return [float(text.replace(",", "")) for text in NUMBER.findall(str(value))]


def recorded(patterns: list[str]) -> list[float]:
    found: list[float] = []
    for pattern in patterns:
        paths = sorted(ROOT.glob(pattern))
        assert paths, pattern
        for path in paths:
            text = path.read_text()
            found += numbers(json.loads(text) if path.suffix == ".json" else text.replace(",", " "))
    return found


def test_every_table_is_accounted_for() -> None:
    seen = {
        (document, head): known(document, head, [BARS, *RECORDED, *WITHOUT, *OF_WORDS])
        for document, head, _ in tables()
    }
    assert not [place for place, found in seen.items() if found is None]
    assert len(WITHOUT) <= 11  # fewer, never more
    gone = WITHOUT - {found for found in seen.values() if found}
    assert not gone, "take it off the list"


@pytest.mark.parametrize("place", RECORDED, ids=str)
def test_figures_are_those_of_the_record(place: tuple[str, str]) -> None:
    values = recorded(RECORDED[place])
    rows = [row for document, head, rows in tables() if known(document, head, [place]) for row in rows]
    missing = []
    for row in rows:
        shown = [(text, times) for cell in row.strip("|").split("|")[1:] for text, times in FIGURE.findall(cell)]
        of_row = [value for text, _ in shown for value in values if says(text, value)]
        for text, times in shown:
            is_ratio = bool(times) and any(b and says(text, a / b, (1,)) for a in of_row for b in of_row)
            if not is_ratio and not any(says(text, value) for value in values):
                missing.append(f"{text} in {row}")
    assert rows and not missing, missing


def test_what_was_reached_is_in_the_record_that_the_row_names() -> None:
    rows = [row for document, _, rows in tables() for row in rows if document == BARS[0]]
    missing = []
    for row in rows:
        _, reached, names, _ = (cell.strip() for cell in row.strip("|").split("|"))
        values = recorded([f"benchmarks/records/{name}.json" for name in re.findall(r"`(\w+)`", names)])
        figures = [text for text, times in FIGURE.findall(reached) if not times]
        missing += [f"{text} in {row}" for text in figures if not any(says(text, v, (1, 100)) for v in values)]
    assert rows and not missing, missing


def says(text: str, value: float, scales: tuple[float, ...] = (1, 100, 1000, 1e-3, 1e-6)) -> bool:
    """Whether a figure as it is written is this value, as it is or in percent, ms, thousands, MB."""
    digits = len(text.partition(".")[2])
    return any(abs(scale * value - float(text.replace(",", ""))) <= 0.5000001 * 10.0**-digits for scale in scales)
