# ruff: noqa: E501 rows of a table
"""Writes the tables of measured figures into the documents, from benchmarks/records/ and cards.json.

    python benchmarks/tables.py            # writes them
    python benchmarks/tables.py --check    # only says which documents are not what the records say

A document marks where a table stands by <!-- table: NAME --> and <!-- end -->. Whatever is between them is made here,
so that a figure cannot be in the wrong row or older than its record. `tests/test_records.py` runs the check.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lowenergy.base.intervals import wilson

ROOT = Path(__file__).parents[1]
SAMPLES = 1000  # ebm.evaluate.samples as shipped; records keep the params that differ
DOCUMENTS = ("README.md", "benchmarks/README.md", "docs/*.md", "pretrained/README.md")
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
Table = tuple[str, list[list[str]]]  # head, with columns of figures ending in ":", and rows

TABLES: dict[str, Callable[[], Table]] = {}


def table(name: str) -> Callable[[Callable[[], Table]], Callable[[], Table]]:
    def kept(made: Callable[[], Table]) -> Callable[[], Table]:
        TABLES[name] = made
        return made

    return kept


# -- records ----------------------------------------------------------------------------------------------------------


def read(path: str) -> Any:
    return json.loads((ROOT / path).read_text(), object_hook=lambda found: SimpleNamespace(**found))


def rows(record: str) -> list[Any]:
    return [row for run in read(f"benchmarks/records/{record}.json").runs for row in run.rows]


def row(record: str, **where: Any) -> Any:
    """The one row of a record that has these values."""
    found = [r for r in rows(record) if all(getattr(r, key, None) == value for key, value in where.items())]
    if len(found) != 1:
        raise LookupError(f"{record}: {len(found)} rows have {where}, not one")
    return found[0]


def card(record: str, label: str, branch: str | None = None) -> Any:
    """The card of a labelled row; of a chain's row, that of one of its branches."""
    found = row(record, label=label)
    return getattr(found.cards, branch) if branch else found.card


# -- figures ----------------------------------------------------------------------------------------------------------


def percent(share: float | None, digits: int = 2) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


def auroc(card: Any) -> str:
    return ", ".join(f"{getattr(card.ood_auroc, kind):.3f}" for kind in ("noise", "rotation", "reduction"))


def size(card: Any) -> list[str]:
    return [f"{card.size_bytes:,}", f"{card.compression_ratio:.1f}×"]


# -- the default pipeline ---------------------------------------------------------------------------------------------


@table("digits")
def digits() -> Table:
    """All models of `dvc repro` as params.yaml has it, with the intervals of what one decides by."""
    cards = vars(read("cards.json"))

    def figure(c: Any, key: str, shown: Callable[[float], str]) -> str:
        if not hasattr(c, key):
            return ""
        low, high = getattr(c, f"{key}_interval")
        return f"{shown(getattr(c, key))} ({shown(low)}–{shown(high)})"

    scale = cards["scorer"]
    made = [
        ["real test images", "", f"{scale.test_images.fid:.2f}", "", ""],
        ["uniform noise", "", f"{scale.uniform_noise.fid:.2f}", "", ""],
    ]
    made += [
        [
            name,
            figure(c, "accuracy", lambda share: f"{100 * share:.1f}"),
            figure(c, "fid", lambda fid: f"{fid:.2f}"),
            *size(c),
        ]
        for name, c in cards.items()
        if name != "scorer"
    ]
    return "model | accuracy, %: | FID: | bytes: | ratio:", made


# -- CIFAR-100, classifiers -------------------------------------------------------------------------------------------

CIFAR100_TEST = 10_000  # images
LEARNED, GPTQ = (f"4 bits, {how}, calibrated only" for how in ("rounding learned", "GPTQ"))
HALF = "half the MACs, of that 4 bits, of that pq"


@table("cifar100-classifiers")
def cifar100_classifiers() -> Table:
    again = ", ".join(f"{100 * card('cifar100_bars', f'pq, 32x, seed {seed}', 'pq').accuracy:.2f}" for seed in (1, 2))
    trained, rounded, moving = "cifar100_bars", "cifar100_mixed_bits", "cifar100_moving_codes"
    shown = {
        "teacher": (trained, "teacher", "teacher"),
        "8-bit weights, one epoch": (trained, "8 bits", "quantize"),
        "4-bit weights, four epochs": (trained, "4 bits", "quantize"),
        "2-bit weights, ten epochs": (trained, "2 bits", "quantize"),
        "4-bit weights, untrained": (rounded, "4 bits, calibrated only", "quantize"),
        "4-bit weights, rounding learned": (rounded, LEARNED, "quantize"),
        "4 bits by layer, untrained": (rounded, "4 bits on average, calibrated only", "quantize"),
        "pruned to a tenth of the weights": (trained, "a tenth of the weights", "prune"),
        "pruned to a quarter of the MACs": (trained, "a quarter of the MACs", "prune"),
        "pruned to half of the MACs": (trained, HALF, "prune"),
        "that, then 4-bit weights": (trained, HALF, "quantize"),
        "that, then `pq`": (trained, HALF, "pq"),
        "`pq`, 695 kB": (trained, "pq, 64x", "pq"),
        "the same, codes chosen anew": (moving, "codes that move, 64x", "pq"),
        "that, channels in another order": (moving, "codes that move, channels in another order, 64x", "pq"),
        f"`pq`, 1.4 MB (other seeds: {again})": (trained, "pq, 32x, seed 0", "pq"),
    }
    made = []
    for name, place in shown.items():
        c = card(*place)
        made.append([name, *size(c), f"{100 * c.accuracy:.2f}"])
    return "CIFAR-100, ResNet-18 | bytes: | ratio: | top-1, %:", made


@table("networks")
def networks() -> Table:
    shown = {
        "resnet18": "resnet18",
        "mobilenet_v3_small": "mobilenet_v3_small",
        "convnext_tiny": "convnext_tiny",
        "vit_b_16": "VisionTransformer, small",
        "timm resnext26ts": "timm's resnext26ts",
    }
    made = []
    for network, name in shown.items():
        teacher = row("any_network", network=network, branch="teacher")
        others = [
            row("any_network", network=network, branch=branch)
            for branch in ("prune", "prune channels", "quantize", "pq")
        ]
        made.append(
            [name, f"{100 * teacher.accuracy:.1f}, {teacher.size_bytes / 1e6:.1f} MB"]
            + [f"{100 * r.accuracy:.1f}, {r.compression_ratio:.1f}×" for r in others]
        )
    return (
        "top-1, %, and ratio | teacher: | prune 50 %: | channels, 30 %: | int8: | pq:",
        made,
    )


# -- energies ---------------------------------------------------------------------------------------------------------


@table("headlines")
def headlines() -> Table:
    """The README's: one row for each thing that is worth knowing."""

    def classifier(name: str, label: str, branch: str) -> list[str]:
        teacher, c = card("cifar100_bars", "teacher", "teacher"), card("cifar100_bars", label, branch)
        half = 100 * 1.96 * (c.accuracy * (1 - c.accuracy) / CIFAR100_TEST) ** 0.5
        return [name, percent(teacher.accuracy), f"{percent(c.accuracy)} ± {half:.1f}", *size(c)]

    def energy(name: str, model: str) -> list[str]:
        teacher = row("shipped_mnist", model="mnist-ebm-77k.safetensors")
        drawn = row("shipped_mnist", model=f"{model}.safetensors")
        ratio = teacher.bytes / drawn.bytes
        return [name, f"FID {teacher.fid:.2f}", f"FID {drawn.fid:.2f}", f"{drawn.bytes:,}", f"{ratio:.1f}×"]

    ebm = card("cifar100_energy", "EBM, residual of width 24, drawn on a GPU")
    codewords = card("cifar100_energy", "EBM, residual of width 24, pq, 97 kB at most, on a GPU")
    made = [
        classifier("CIFAR-100, ResNet-18: `pq`", "pq, 32x, seed 0", "pq"),
        classifier("the same, half of the arithmetic pruned, then `pq`", HALF, "pq"),
        classifier("the same, half of it pruned, then 4-bit weights", HALF, "quantize"),
        energy("MNIST, EBM: `distill`, then int8", "mnist-ebm-tiny"),
        energy("MNIST, EBM: `distill`, then `pq`", "mnist-ebm-12k"),
        ["CIFAR-100's images, EBM: `pq`", f"FID {ebm.fid:.1f}", f"FID {codewords.fid:.1f}", *size(codewords)],
    ]
    return "model and method | teacher: | compressed: | bytes: | ratio:", made


@table("mnist")
def mnist() -> Table:
    shown = {
        "EBM": "mnist-ebm-77k",
        "EBM, 4-bit weights": "77 k, 4-bit weights",
        "EBM, 35 % of the channels pruned, [`pq`](product-quantization.md)": "77 k, 35 % of the channels pruned, pq",
        "[student](students.md), int8": "mnist-ebm-tiny",
        "student, `pq`": "mnist-ebm-12k",
        "JEM, accuracy {}": "mnist-jem",
    }
    made = []
    for name, label in shown.items():
        if label.startswith("mnist-"):
            drawn, c = row("shipped_mnist", model=f"{label}.safetensors"), read(f"pretrained/{label}.json")
            fid, inception_score = drawn.fid, drawn.inception_score
        else:
            c = card("mnist_retrain", label)
            fid, inception_score = c.fid, c.inception_score
        made.append(
            [name.format(percent(getattr(c, "accuracy", None))), f"{c.size_bytes:,}"]
            + [f"{fid:.2f}", f"{inception_score:.2f}", auroc(c)]
        )
    published = row("shipped_mnist", images="mnist_ebm_samples.npz")
    name = "published EBM, same architecture"
    made.append([name, "", f"{published.fid:.2f}", f"{published.inception_score:.2f}", ""])
    return "MNIST | bytes: | FID: | IS: | OOD AUROC: noise, rotation, reduction:", made


@table("cifar100-energies")
def cifar100_energies() -> Table:
    again = f"{card('cifar100_energy', 'EBM, residual of width 24, drawn on a GPU').fid:.1f}"
    shown = {
        "JEM of width 64": "JEM, residual of width 64, on a GPU",
        "JEM of width 64, 7-bit int8, fc float32": "JEM, residual of width 64, int8, seven-bit weights, float fc",
        "JEM of width 64, heavier labels": "JEM, residual of width 64, labels of weight 0.2 rising, on a GPU",
        "EBM of width 64": "EBM, residual of width 64, on a GPU",
        "EBM of width 24": "EBM, residual of width 24, images at rest",
        "the same file, [longer steps](energies.md#longer-steps)": "EBM, residual of width 24, drawn in steps of 0.1",
        "EBM of width 24, int8": "EBM, residual of width 24, int8",
        f"EBM of width 24, `pq`, on a GPU (float32: {again})": "EBM, residual of width 24, pq, 97 kB at most, on a GPU",
        "the same file, longer steps": "EBM, residual of width 24, pq, 97 kB at most, drawn in steps of 0.1",
        "EBM of width 24, 82 % pruned, int8": "EBM, residual of width 24, pruned, of that int8",
    }
    made = []
    for images, name in (("test", "real test images"), ("gaussian", "a Gaussian of the training images")):
        r = row("cifar100_scale", images=images)
        made.append([name, "", "", f"{r.fid:.1f}"])
    for name, label in shown.items():
        c = card("cifar100_energy", label)
        accuracy = f"{100 * c.accuracy:.2f}" if hasattr(c, "accuracy") else ""
        made.append([name, f"{c.size_bytes:,}", accuracy, f"{c.fid:.1f}"])
    return "CIFAR-100 | bytes: | accuracy, %: | FID:", made


@table("chain-lengths")
def chain_lengths() -> Table:
    shown = {"compact of width 16": "MNIST's student, int8", "residual of width 24": "CIFAR-100's EBM of width 24"}
    made = []
    for network, name in shown.items():
        for step_size in (0.05, 0.1):
            found = (row("chain_lengths", network=network, step_size=step_size, steps=n) for n in (50, 100, 200))
            made.append([name, f"{step_size}", *(f"{r.fid:.2f}" for r in found)])
            name = ""
    return "FID | step size: | 50 steps: | 100: | 200:", made


@table("pq-ablation")
def pq_ablation() -> Table:
    """What each part of product quantization is worth, with intervals of 95 %."""
    made = []
    for r in rows("pq_ablation"):
        top1 = wilson(round(CIFAR100_TEST * r.accuracy), CIFAR100_TEST)
        shown = f"{100 * top1.value:.2f} ({100 * top1.low:.2f}–{100 * top1.high:.2f})"
        made.append([r.parts, f"{r.bytes:,}", f"{r.ratio:.1f}×", shown])
    return "CIFAR-100's ResNet-18 | bytes: | ratio: | top-1, %:", made


# -- the pipeline as a program ----------------------------------------------------------------------------------------


ENDS = ("right", "refused", "traceback", "wrong", "out_of_time")  # of a cell of conformance.py


@table("conformance")
def conformance() -> Table:
    """How many networks came to which end, by cell; of those that have run."""
    found = rows("conformance")
    made = []
    for target in ("classifier", "ebm"):
        cells = [getattr(r, target).split() for r in found]
        counts = [
            Counter(cell if cell in ENDS else "right" for cell in column if cell != "-")
            for column in zip(*cells, strict=True)
        ]
        made += [
            [target, end.replace("_", " "), *(f"{of[end]}" for of in counts)]
            for end in ENDS
            if end == "right" or any(of[end] for of in counts)
        ]
    chosen = json.loads((ROOT / "benchmarks" / "conformance_networks.json").read_text())
    cells = read("benchmarks/records/conformance.json").runs[-1].cells
    return f"{len(found)} of {len(chosen)} networks, as | are | " + " | ".join(f"{cell}:" for cell in cells), made


@table("conformance-rest")
def conformance_rest() -> Table:
    """What is not right, and why."""
    made = [
        [r.network, cell, why.replace("|", "\\|")]
        for r in rows("conformance")
        for cell, why in vars(r.not_right).items()
    ]
    return "network | cell | what came of it", made or [["none", "", ""]]


# -- what was wanted ---------------------------------------------------------------------------------------------------


@table("bars")
def bars() -> Table:
    """One row for each bar that was set; "short" says by how much, and what was tried."""

    def top1(label: str, branch: str, of: str = "cifar100_bars") -> str:
        return f"{100 * card(of, label, branch).accuracy:.2f}"

    def fid(label: str, of: str = "cifar100_energy") -> str:
        found = card(of, label).fid
        return f"{found:.1f}" if found > 10 else f"{found:.2f}"

    def in_bytes(label: str, of: str) -> str:
        return f"{card(of, label).size_bytes:,}"

    def ratio(label: str) -> str:
        return f"{card('cifar100_energy', label).compression_ratio:.1f}×"

    def labelled(label: str) -> str:
        return f"{percent(card('cifar100_energy', label).accuracy)} with {fid(label)}"

    def between(c: Any) -> str:
        found = wilson(round(CIFAR100_TEST * c.accuracy), CIFAR100_TEST)  # older cards have no interval
        low, high = getattr(c, "accuracy_interval", (found.low, found.high))
        return f"{percent(low)} to {percent(high)}"

    damaged = rows("damaged_files")
    as_shipped = "half the MACs as shipped, 4 and 4 bits"
    alike, by_layer, half_alike, half_by_layer = (
        card("cifar100_mixed_bits", label, "quantize")
        for label in ("4 and 4 bits", "4 and 4 bits on average", as_shipped, f"{as_shipped} on average")
    )
    quarter_float, quarter = (
        card("cifar100_mixed_bits", "half of the half as shipped, 4 and 4 bits on average", of)
        for of in ("prune", "quantize")
    )
    teacher = top1("teacher", "teacher")
    smallest, four = (card("cifar100_bars", HALF, branch) for branch in ("pq", "quantize"))
    ebm, again, longer = (
        f"EBM, residual of width 24, {how}" for how in ("images at rest", "drawn on a GPU", "drawn in steps of 0.1")
    )
    jem, rising = (f"JEM, residual of width 64, {how}" for how in ("on a GPU", "labels of weight 0.2 rising, on a GPU"))
    codewords, student = "EBM, residual of width 24, pq, 97 kB at most", "EBM, student of width 16, of that int8"
    pruned, int8 = "EBM, residual of width 24, pruned", "JEM, residual of width 64, int8, seven-bit weights, float fc"
    jems = f"{labelled(rising)}, {labelled(jem)}"
    gaussian = f"{row('cifar100_scale', images='gaussian').fid:.1f}"
    tiny, large = (row("shipped_mnist", model=f"mnist-ebm-{size}.safetensors") for size in ("12k", "77k"))
    shipped, seed = (
        row("shipped_mnist", model="mnist-jem.safetensors"),
        card("mnist_seeds", "JEM of MNIST, seed 2, float32"),
    )
    half = "77 k, 35 % of the channels pruned, pq"
    study = "EBM, resnet18 of width {}, the study's recipe, {} epochs"
    wide, narrow = study.format(16, "two"), study.format(8, "four")
    chains = {minutes: row("energy_objectives", minutes=minutes, objective="energy matching") for minutes in (4.2, 8.7)}
    contrastive = row("energy_objectives", minutes=4.1)
    average, uniform = (
        card("cifar100_mixed_bits", f"4 bits{of}, calibrated only", "quantize") for of in (" on average", "")
    )
    ordered, moving, still = (
        card(record, label, "pq")
        for record, label in (
            ("cifar100_moving_codes", "codes that move, channels in another order, 64x"),
            ("cifar100_moving_codes", "codes that move, 64x"),
            ("cifar100_bars", "pq, 64x"),
        )
    )
    nncf = row("mixed_peers", way="NNCF 3.4.0, four bits for 100% of the weights")
    hands, coarse = (row("start", images=images) for images in ("sign-digits", "cifar100-coarse"))
    classifier, coded, hands_ebm, hands_jem = (
        getattr(hands.cards, name) for name in ("classifier", "classifier-distill-pq", "ebm", "jem")
    )
    own, theirs = (row("inception_fid", by=by, side=299) for by in ("lowenergy", "pytorch-fid"))

    shipped_half = card("cifar100_bars", "half the MACs, of that 4 bits, of that pq", "pq")
    half_anew = card("cifar100_moving_codes", "codes that move, half of the MACs as shipped", "pq")
    anew = [card("cifar100_moving_codes", f"codes that move, 32x, seed {seed}", "pq") for seed in (0, 1)]
    made = [
        [
            "CIFAR-100, `pq` at 32×: at most 0.3 points lost, mean of three seeds",
            ", ".join(top1(f"pq, 32x, seed {seed}", "pq") for seed in range(3)) + f" % of {teacher} %",
            "`cifar100_bars`",
            "by a hundredth of a point",
        ],
        [
            "at 45×: at most 1.0 point lost, mean of three seeds",
            f"{percent(smallest.accuracy)} at {smallest.compression_ratio:.1f}×, channels pruned first, one seed",
            "`cifar100_bars`",
            "three seeds of the whole chain were not run",
        ],
        [
            "at most 700,000 bytes at 72 %",
            f"{smallest.size_bytes:,} bytes, {percent(smallest.accuracy)}",
            "`cifar100_bars`",
            "",
        ],
        [
            "MicroNet score of at most 0.06 at 73 %",
            f"{smallest.micronet.score:.4f} at {percent(smallest.accuracy)}, {four.micronet.score:.4f} at {percent(four.accuracy)}",
            "`cifar100_bars`",
            "",
        ],
        [
            "half of the multiply-accumulates, at most 1 point lost",
            f"{top1(HALF, 'prune')} % of {teacher} %",
            "`cifar100_bars`",
            "",
        ],
        [
            "a quarter of them, at most 3 points lost",
            f"{top1('a quarter of the MACs', 'prune')} %",
            "`cifar100_bars`",
            "",
        ],
        [
            "a tenth of the weights, at most 1 point lost",
            f"{top1('a tenth of the weights', 'prune')} %",
            "`cifar100_bars`",
            "",
        ],
        [
            "trained rounded, 8 bits: 0.1 points lost; 4 bits: 0.5; 2 bits: 3",
            ", ".join(top1(f"{bits} bits", "quantize") for bits in (8, 4, 2)) + " %",
            "`cifar100_bars`",
            "",
        ],
        [
            "MNIST, `pq` of the EBM at 12×: FID at most 1.0",
            f"{fid(half, 'mnist_retrain')} in {in_bytes(half, 'mnist_retrain')} bytes, channels pruned first; without that {fid('77 k, pq, codes by layer', 'mnist_retrain')} in {in_bytes('77 k, pq, codes by layer', 'mnist_retrain')}",
            "`mnist_retrain`",
            "",
        ],
        ["4-bit weights: FID at most 2", fid("77 k, 4-bit weights", "mnist_retrain"), "`mnist_retrain`", ""],
        [
            "an EBM of MNIST as good as the 77 k one in at most 12 kB",
            f"FID {tiny.fid} in {tiny.bytes:,} bytes, {large.fid} in {large.bytes:,}",
            "`shipped_mnist`",
            "",
        ],
        [
            f"colour: the EBM's FID a quarter of the Gaussian's {gaussian}",
            f"{fid(longer)} on two cores, drawn in steps twice as long ({fid(ebm)} in those of training), {fid('EBM, residual of width 64, on a GPU')} on a GPU",
            "`cifar100_energy`",
            f"by nine twentieths, and by one third; width, epochs, batches, a flow that rests and a U with attention ({fid('EBM, unet of width 24, GPU')}) were tried; the GPU's was not drawn in longer steps",
        ],
        [
            "colour: a JEM of 65 % with FID half of the Gaussian's",
            f"{jems}, on a GPU",
            "`cifar100_energy`",
            "by 4 points; heavier labels, forty epochs; on two cores, as was wanted, not run",
        ],
        [
            "colour, at full size on a GPU: a JEM of 75 %, FID a tenth of the Gaussian's",
            jems,
            "`cifar100_energy`",
            "by 14 points, and FID twice too large: what labels give, samples lose; width 64, six minutes of a GPU",
        ],
        [
            "colour, 4× smaller, FID within a fifth of the teacher's: `pq` of the EBM",
            f"{fid(f'{codewords}, on a GPU')} at {ratio(f'{codewords}, on a GPU')}, the teacher {fid(again)}",
            "`cifar100_energy`",
            "",
        ],
        [
            "int8 in both directions",
            f"EBM {fid('EBM, residual of width 24, int8')} at {ratio('EBM, residual of width 24, int8')}, the teacher {fid(ebm)}; JEM {fid(int8)} at {ratio(int8)}, the teacher {fid(jem)}",
            "`cifar100_energy`",
            "",
        ],
        [
            "`prune`",
            f"EBM {fid(pruned)} at {ratio(pruned)}, the teacher {fid(ebm)}; JEM {fid('JEM, labels rising, pruned, on a GPU')} at {ratio('JEM, labels rising, pruned, on a GPU')}, the teacher {fid(rising)}",
            "`cifar100_energy`",
            "",
        ],
        [
            "chains: `prune → quantize`",
            f"EBM {fid(f'{pruned}, of that int8')} at {ratio(f'{pruned}, of that int8')}, the teacher {fid(ebm)}",
            "`cifar100_energy`",
            "",
        ],
        [
            "`distill`, of that int8",
            f"EBM {fid(student)} at {ratio(student)}, the teacher {fid(ebm)}",
            "`cifar100_energy`",
            f"by 0.4, in longer steps by 0.5: {fid(f'{student}, drawn in steps of 0.1')}, the teacher {fid(longer)}; of half the width {fid('EBM, student of width 12')} at {ratio('EBM, student of width 12')}, too little room",
        ],
        [
            "MNIST, `strided` without labels: IS at least 9.0",
            f"{card('mnist_retrain', '77 k, trained on for 45 epochs').inception_score:.2f}, FID {fid('77 k, trained on for 45 epochs', 'mnist_retrain')}, trained on for 45 epochs",
            "`mnist_retrain`",
            "",
        ],
        [
            "a JEM of MNIST on another seed",
            f"FID {seed.fid:.2f}, IS {seed.inception_score:.2f}, {percent(seed.accuracy)}, no recovery; the shipped one {shipped.fid:.2f}, {shipped.inception_score:.2f}",
            "`mnist_seeds`, `shipped_mnist`",
            "",
        ],
        [
            "the study's pruning sweep, 36 cells, seven epochs each",
            f"three cells: FID {fid('unstructured, 0.7, seven epochs', 'mnist_prune_study')} at 70 % of the weights, {fid('unstructured, 0.9, seven epochs', 'mnist_prune_study')} at 90 %; {fid('structured, 0.3, seven epochs', 'mnist_prune_study')} at 30 % of the channels",
            "`mnist_prune_study`",
            "the others have one epoch ([all](../docs/sweeps/ebm.csv)); seven take 20 minutes a cell",
        ],
        [
            "presets `pq-large-blocks`, `pq-punynet` on CIFAR-100",
            "; ".join(
                f"{percent(card('cifar100_presets', name).accuracy)} in {in_bytes(name, 'cifar100_presets')}{unit}"
                for name, unit in (("pq-large-blocks", " bytes"), ("pq-punynet", ""))
            ),
            "`cifar100_presets`",
            "one epoch of 1,900 images, by 2,000 test images; to the end they take hours",
        ],
        [
            "the study's recipe to the letter, at a size that fits a few hours",
            f"FID {fid(wide, 'mnist_study')}, IS {card('mnist_study', wide).inception_score:.2f} at width 16 after {row('mnist_study', label=wide).seconds:,} s of one core; {fid(narrow, 'mnist_study')} at width 8",
            "`mnist_study`",
            "two and four epochs of 60; at width 8 all chains end in the same stripes",
        ],
        [
            "the study's objective beside ours, in the same time, by FID",
            f"{contrastive.fid:.1f} after {contrastive.minutes} minutes; {chains[4.2].fid:.1f} after 4.2, {chains[8.7].fid:.1f} after 8.7",
            "`energy_objectives`",
            "",
        ],
        [
            "a model of colour in at most 100 kB",
            f"{fid(f'{codewords}, drawn in steps of 0.1')} in {in_bytes(f'{codewords}, on a GPU', 'cifar100_energy')} bytes, drawn in steps twice as long ({fid(f'{codewords}, on a GPU')} in those of training)",
            "`cifar100_energy`",
            "",
        ],
        [
            "bits by layer, beside uniform bits and NNCF",
            f"{percent(average.accuracy)} in {average.size_bytes:,} bytes; {percent(uniform.accuracy)} in {uniform.size_bytes:,}; NNCF {nncf.zstd_bytes:,} bytes, all after zstd",
            "`cifar100_mixed_bits`, `mixed_peers`",
            "",
        ],
        [
            "4-bit weights of the CIFAR-100 teacher, calibrated only: ≥ 73.5 %",
            f"{' and '.join(percent(card('cifar100_mixed_bits', of, 'quantize').accuracy) for of in (LEARNED, GPTQ))} by "
            f"AdaRound and GPTQ; to nearest {percent(uniform.accuracy)}",
            "`cifar100_mixed_bits`",
            "",
        ],
        [
            "4-bit weights and activations of that teacher: ≥ 74.0 %",
            f"{percent(by_layer.accuracy)} with bits by layer after two epochs; "
            f"4 bits everywhere: {percent(alike.accuracy)} after three, "
            f"{percent(card('cifar100_mixed_bits', '4 and 4 bits, calibrated only', 'quantize').accuracy)} after none",
            "`cifar100_mixed_bits`",
            f"95 %: {between(by_layer)}, {between(alike)}",
        ],
        [
            "half of the MACs, 4 and 4 bits: MicroNet score of at most 0.035 at 74 %",
            f"{half_by_layer.micronet.score_tree:.4f} by an adder tree, {half_by_layer.micronet.score_integer:.4f} by the "
            f"narrowest integers, {half_by_layer.micronet.score:.4f} by sums of 32 bits, at "
            f"{percent(half_by_layer.accuracy)}",
            "`cifar100_mixed_bits`",
            "from the shipped codes of the pruned network, bits by layer, three epochs; 95 %: "
            f"{between(half_by_layer)}; 4 bits everywhere, two epochs: {percent(half_alike.accuracy)}",
        ],
        [
            "a quarter of the MACs, 4 and 4 bits: score of at most 0.02 at 73 %",
            f"{quarter.micronet.score_tree:.4f} by an adder tree, {quarter.micronet.score_integer:.4f} by the narrowest "
            f"integers, {quarter.micronet.score:.4f} by sums of 32 bits, at {percent(quarter.accuracy)}",
            "`cifar100_mixed_bits`",
            f"half of the shipped half, four epochs, then bits by layer, three; 95 %: {between(quarter)}; float before: "
            f"{percent(quarter_float.accuracy)}",
        ],
        [
            "`pq` at 65×, no channels pruned first: ≥ 73.5 %",
            f"{percent(ordered.accuracy)} in {ordered.size_bytes:,} bytes, channels in another order and codes chosen "
            f"anew every ten steps; without the order {percent(moving.accuracy)}, where codes stay {percent(still.accuracy)}",
            "`cifar100_moving_codes`, `cifar100_bars`",
            f"five epochs on a processor, five, eight on a GPU; 95 %: {between(ordered)}, {between(moving)}, "
            f"{between(still)}",
        ],
        [
            "`pq` at 32×: ≥ 74.3 %, mean of three seeds",
            ", ".join(top1(f"pq, 32x, seed {seed}", "pq") for seed in range(3)) + " %; codes chosen anew: "
            f"{' and '.join(f'{100 * each.accuracy:.2f}' for each in anew)} %",
            "`cifar100_bars`, `cifar100_moving_codes`",
            "five epochs each; the third seed of codes chosen anew was not run",
        ],
        [
            "`pq` of the half network in 690 kB: ≥ 75.0 %",
            f"{percent(shipped_half.accuracy)} as shipped; from its codes, chosen anew every ten steps: "
            f"{percent(half_anew.accuracy)} in {half_anew.size_bytes:,} bytes",
            "`cifar100_bars`, `cifar100_moving_codes`",
            f"five epochs more; 95 %: {between(half_anew)}",
        ],
        [
            "224×224, a network of 1,000 outputs, every branch on 2,000 images: within 8 GiB",
            f"{max(row.anonymous_mib for row in rows('large_pictures')) / 1024:.1f} GiB at most, mobilenet_v3_small as "
            "classifier and as energy",
            "`large_pictures`",
            "",
        ],
        [
            "2,000 damaged model files: refused or read, none by a traceback or beyond 1 GiB",
            f"{sum(row.traceback + row.memory + row.time + row.lines for row in damaged)} of them otherwise; "
            f"{next(row.refused for row in damaged if row.use == 'load'):,} are refused at loading",
            "`damaged_files`",
            "",
        ],
        [
            "photographs of hands, one command, one hour: time within 1.3 of what was said",
            f"{hands.minutes} minutes, {hands.planned_minutes:.0f} were said; images of {hands.pixels} pixels",
            "`start`",
            "",
        ],
        [
            "the same: a classifier of 98 %, its best chain 20× smaller within a point",
            f"{percent(classifier.accuracy)}; {percent(coded.accuracy)} at {coded.compression_ratio:.1f}×",
            "`start`",
            "",
        ],
        [
            "the same: EBM and JEM with half of the Gaussian's FID",
            f"{hands_ebm.fid:.2f} and {hands_jem.fid:.2f} of {hands.gaussian_fid:.2f}",
            "`start`",
            "",
        ],
        [
            "CIFAR-100's 20 coarse classes, a folder of 60,000 PNGs, the same command: time",
            f"{coarse.minutes} minutes beside other work, {coarse.planned_minutes:.0f} were said; images of 16 pixels",
            "`start`",
            "",
        ],
        [
            "the same: EBM and JEM with half of the Gaussian's FID",
            f"{coarse.cards.ebm.fid:.2f} and {coarse.cards.jem.fid:.2f} of {coarse.gaussian_fid:.2f}",
            "`start`",
            "the EBM by 0.6, the JEM by 0.01",
        ],
        [
            "FID through Inception: pytorch-fid's to 0.1",
            f"{own.fid:.3f} and {theirs.fid:.3f}, random weights",
            "`inception_fid`",
            "",
        ],
    ]
    return "wanted | reached | record | short, and why", made


# -- devices ----------------------------------------------------------------------------------------------------------

KB = 1024


@table("device")
def on_devices() -> Table:
    """What was wanted of models on devices, and what came out."""

    def on_m7(model: str, plan: str) -> Any:
        return row("device", row="microcontroller", model=model, plan=plan, target="cortex-m7")

    tight, tiny = on_m7("mnist-ebm-12k", "32k"), on_m7("mnist-ebm-tiny", "32k")
    least, least_tiny = on_m7("mnist-ebm-12k", "smallest"), on_m7("mnist-ebm-tiny", "smallest")
    quality = [row("device", row="quality", model=model) for model in ("mnist-ebm-12k", "mnist-ebm-tiny")]
    small, speed = row("device", row="smallest"), row("device", row="speed", model="mnist-ebm-12k")
    page, large = row("device", row="page"), row("device", row="classifier")
    exports = [r for r in rows("device") if r.row == "openvino"]
    worst, nudged = (
        {
            kind: max(value for r in exports if r.int8 == kind for value in vars(getattr(r, of)).values())
            for kind in (0, 1)
        }
        for of in ("differences", "of_nudged")
    )
    agreeing = sum(max(vars(r.differences).values()) <= (0.1 if r.int8 else 1e-4) for r in exports)
    made = [
        ["mnist-ebm-12k on a Cortex-M7: flash", f"≤ {16 * KB:,} bytes", f"{tight.flash:,}", ""],
        [
            "its RAM, arena and stack", f"≤ {32 * KB:,} bytes, aim {24 * KB:,}", f"{tight.ram:,}",
            f"short of the aim by {least.ram - 24 * KB:,}: two float images of 12,544 bytes are there at a time; int8, below, has room",
        ],
        [
            "an int8 energy of MNIST, mnist-ebm-tiny", f"≤ {32 * KB:,} + {32 * KB:,} bytes",
            f"{tiny.flash:,} + {tiny.ram:,}", f"{least_tiny.flash:,} + {least_tiny.ram:,} in the smallest plan",
        ],
        [
            f"FID of {quality[0].images:,} images drawn in C, and in torch from the same file", "within 0.2",
            "; ".join(f"{r.model} {r.fid:.2f} and {r.fid_torch:.2f}" for r in quality), "",
        ],
        [
            "digits on a chip of 2 kB of RAM, 32 kB of flash", "a number",
            f"FID {small.fid:.1f} in {small.flash:,} + {small.ram:,} bytes",
            f"ATmega328P in simavr: {small.model}, {small.ms_at_16_mhz:.0f} ms a step at 16 MHz, the same pixels; RAM holds the constants, too",
        ],
        [
            "a step on one x86 core, beside onnxruntime", "≤ 1.5 ×", f"{speed.c_to_onnxruntime:.2f} ×",
            f"{speed.c_kept / speed.onnxruntime:.2f} × with weights kept decoded",
        ],
        ["the page with mnist-ebm-12k", f"≤ {48 * KB:,} bytes", f"{page.bytes:,}", ""],
        [
            "its steps in Chromium, beside onnxruntime-web", "≥ 4 ×", f"{page.times_as_many_steps:.1f} ×",
            f"short by half: {page.ms:.2f} ms against {page.onnxruntime_web_ms:.2f}, where 7.2 were expected",
        ],
        [
            "ResNet-18 of CIFAR-100, 689,995 bytes: flash", "≤ 900,000 bytes", f"{large.flash:,}",
            f"{large.ram:,} bytes of RAM, {large.ms:.0f} ms an image on one x86 core",
        ],
        [
            f"its answers to {large.images:,} test images", "torch's", f"{large.same_answers:,} the same, {percent(large.accuracy, 1)}",
            f"largest difference of a logit {large.largest_difference:.0e}",
        ],
        [
            "OpenVINO beside onnxruntime, all exports", "agree: to 1e-4, int8 to 0.1 deviations", f"{agreeing} of {len(exports)}",
            f"to {worst[0]:.0e} deviations, int8 to {worst[1]:.2f}; images 1e-6 apart make {nudged[1]:.2f} in onnxruntime",
        ],
    ]  # fmt: skip
    return "measured | wanted | reached | beside it", made


@table("device-memory")
def memory_of_devices() -> Table:
    """What models take on a Cortex-M7, in the least time and in the least memory."""
    made = []
    for model in ("mnist-ebm-12k", "mnist-ebm-tiny"):
        for plan in ("fastest", "smallest"):
            r = row("device", row="microcontroller", model=model, plan=plan, target="cortex-m7")
            work = f"{r.work / (r.work - r.computed_again):.2f}×"
            made.append([f"{model}, {plan} plan", f"{r.flash:,}", f"{r.ram:,}", work])
    return "Cortex-M7 | bytes of flash: | of RAM: | arithmetic:", made


@table("search-fronts")
def searches() -> Table:
    """What a search finds beside the default branches."""
    images, named = 359, {"tpe": "search, TPE", "random": "search, by chance"}
    made = []
    for r in rows("search_fronts"):
        best = r.smallest_within
        test = wilson(round(images * best.test.accuracy), images)
        made.append(
            [
                named.get(r.way, r.way),
                str(r.models),
                f"{r.hypervolume:.2f}",
                f"{best.size_bytes:,}",
                best.model.removeprefix("classifier-"),
                percent(best.validation.accuracy),
                f"{percent(test.value)} ({100 * test.low:.1f}–{100 * test.high:.1f})",
            ]
        )
    return "digits, the classifier | models: | area: | smallest, bytes: | made by | validation: | test:", made


@table("device-peers")
def peers_of_devices() -> Table:
    """The same int8 classifier in other runtimes."""
    names = {
        "c": "C", "c_kept": "C, `MODEL_KEEP`", "onnxruntime": "onnxruntime", "executorch": "ExecuTorch, XNNPACK",
        "litert": "LiteRT",
    }  # fmt: skip
    found = {r.way: r for r in rows("device") if r.row == "peer"}
    made = [
        [name, f"{r.bytes:,}", f"{r.runtime_bytes:,}", f"{r.ms:.3f}"]
        for way, name in names.items()
        for r in [found[way]]
    ]
    return "runtime | bytes of the model: | of the runtime: | ms an image:", made


# -- into the documents -----------------------------------------------------------------------------------------------


def markdown(made: Table) -> str:
    head, body = made
    names = head.split(" | ")
    for cells in body:
        if len(cells) != len(names):
            raise ValueError(f"{len(cells)} cells under {len(names)} heads: {cells}")
    lines = [_line(cells) for cells in [[name.removesuffix(":") for name in names], *body]]
    lines.insert(1, f"|{'|'.join('--:' if name.endswith(':') else '---' for name in names)}|\n")
    return "".join(lines)


def _line(cells: list[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|\n"


def filled(text: str, document: str) -> str:
    """A document with its tables as the records say.

    Raises:
        LookupError: it marks a table that is not made here.
    """

    def fill(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise LookupError(f"{document}: <!-- table: {found[2]} --> is no table of benchmarks/tables.py")
        return found[1] + markdown(TABLES[found[2]]()) + found[3]

    return MARKED.sub(fill, text)


def documents() -> Iterable[Path]:
    return (path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern)))


def main() -> int:
    stale = []
    for path in documents():
        text = path.read_text()
        if (new := filled(text, str(path.relative_to(ROOT)))) != text:
            stale.append(path.relative_to(ROOT))
            if "--check" not in sys.argv:
                path.write_text(new)
    print("\n".join(map(str, stale)) or "all tables are those of the records")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
