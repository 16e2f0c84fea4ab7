"""Metrics against answers known by other means."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from lowenergy import data, networks, params
from lowenergy.base.cards import told_apart
from lowenergy.calls import inception
from lowenergy.calls.models import taken_in
from lowenergy.energies import Energy
from lowenergy.reporting import front, page
from lowenergy.reporting.tables import between, collect, front_of, pareto_front, show, shown
from lowenergy.runtimes.loading import network_of
from lowenergy.scoring import accuracy, gallery, generation, micronet, ood, size
from lowenergy.storage import artifact
from lowenergy.storage.artifact import Model
from lowenergy.storage.encodings import Coded, Dense, Int8, Range, Sparse

OWN = Path(__file__).parent / "own_networks.py"
SPEC = networks.Spec("cnn", 8, "3x3", "relu", "batch", channels=1, image_size=8, outputs=10)


@pytest.fixture(scope="module")
def scorer() -> networks.Backbone:
    return networks.build(SPEC, seed=0).eval()


def test_fid_is_the_formula(scorer: networks.Backbone, splits: data.Splits, tmp_path: Path) -> None:
    real, fake = splits.train.images, splits.test.images
    generation.write_reference(scorer, {"train": real}, tmp_path / "reference")
    measured = generation.measure(scorer, tmp_path / "reference", data.to_float(fake), seed=0)
    with torch.no_grad():
        a, b = (scorer.features(data.to_float(x)).double().numpy() for x in (real, fake))
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert measured["fid"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [5, 40])
def test_the_fid_of_equal_images_is_none(count: int) -> None:
    features = torch.randn(count, 64, generator=torch.Generator().manual_seed(1))
    moments = generation._moments(features)
    found = generation.distances(moments, features.flip(0), seed=0)
    assert (found >= 0).all() and found[0] == pytest.approx(0, abs=1e-4)
    assert min(inception.distances(features, features.flip(0), seed=0)) >= 0


def test_both_figures_are_torchmetrics(scorer: networks.Backbone, splits: data.Splits, tmp_path: Path) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore

    real, fake = (data.to_float(split.images) for split in (splits.train, splits.test))
    generation.write_reference(scorer, {"train": splits.train.images}, tmp_path / "reference")
    measured = generation.measure(scorer, tmp_path / "reference", fake, seed=3)
    scorer.features.num_features = scorer.fc.in_features
    fid, inception = FrechetInceptionDistance(feature=scorer.features), InceptionScore(feature=scorer)
    with torch.no_grad():
        fid.update(real, real=True)
        fid.update(fake, real=False)
        inception.update(fake)
        torch.manual_seed(3)  # of the splits of the Inception Score
        assert measured["fid"] == pytest.approx(float(fid.compute()), rel=1e-4)
        assert measured["inception_score"] == pytest.approx(float(inception.compute()[0]), rel=1e-5)


def test_fid_of_the_reference_itself_is_zero_and_noise_is_far(
    scorer: networks.Backbone, splits: data.Splits, tmp_path: Path
) -> None:
    generation.write_reference(scorer, {"train": splits.train.images}, tmp_path / "reference")

    def fid(images: torch.Tensor) -> float:
        return generation.measure(scorer, tmp_path / "reference", images, seed=0)["fid"]

    same, noise = fid(data.to_float(splits.train.images)), fid(torch.rand(300, 1, 8, 8) * 2 - 1)
    assert abs(same) < 1e-3 * noise


def test_inception_score_of_sure_and_even_answers_is_the_number_of_classes(tmp_path: Path) -> None:
    class Sure(nn.Module):
        """Says the class that the first pixel encodes."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 100 * nn.functional.one_hot((x[:, 0, 0, 0] * 5 + 4.5).round().long(), 10).float()

    scorer = networks.build(SPEC, seed=0).eval()
    scorer.features, scorer.fc = Sure(), nn.Identity()
    images = torch.zeros(1000, 1, 8, 8)
    images[:, 0, 0, 0] = (torch.arange(1000) % 10 - 4.5) / 5
    generation.write_reference(scorer, {"train": data.to_bytes(images)}, tmp_path / "reference")
    score = generation.measure(scorer, tmp_path / "reference", images, seed=0)["inception_score"]
    assert 9.0 < score <= 10.0  # splits of 100 are not perfectly even


def test_inception_score_of_very_sure_answers(generator: torch.Generator) -> None:
    """Probabilities of 0, of which the logarithm is none."""
    logits = 1e4 * torch.eye(5)[torch.arange(400) % 4]
    assert generation.inception_score(logits, generator) == pytest.approx(4, rel=0.05)
    assert generation.score_surely(logits, 0).high <= 4.001


def test_ood_tells_what_the_energy_knows(splits: data.Splits) -> None:
    images = data.to_float(splits.test.images)
    generator = torch.Generator().manual_seed(0)

    def measured(energy: Energy) -> dict[str, float]:
        return ood.auroc(ood.energies(energy, {"test": images}, generator))

    assert measured(lambda x: x[:, 0, :, 0].sum(1))["noise"] > 0.99  # digits have black edges
    indifferent = measured(lambda x: torch.zeros(len(x)))
    assert indifferent == {"noise": 0.5, "rotation": 0.5, "reduction": 0.5}


@given(seed=st.integers(0, 2**31), levels=st.integers(1, 50))
def test_auroc_is_scikit_learns(seed: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    energies = {
        kind: torch.randint(levels, (int(torch.randint(2, 40, (), generator=generator)),), generator=generator).float()
        for kind in ("test", *ood.TRANSFORMS)
    }
    for kind, found in ood.auroc(energies).items():
        both = torch.cat([energies["test"], energies[kind]])
        wanted = roc_auc_score((torch.arange(len(both)) >= len(energies["test"])).numpy(), both.numpy())
        assert found == pytest.approx(wanted)


def test_ood_transforms_are_what_they_are_called(splits: data.Splits) -> None:
    images = data.to_float(splits.test.images[:50])
    made = ood.transformed(images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(made["rotation"], images.rot90(1, (2, 3)), rtol=0, atol=1e-4)
    assert (made["reduction"][:, :, 0] == -1).all() and (made["reduction"][:, :, 3:5] > -1).any()
    assert made["noise"].std() == pytest.approx(3**-0.5, rel=0.05)


def test_accuracy_nll_and_confusion(tmp_path: Path) -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 0.5]])
    split = data.Split(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1, 1, 1]))
    measured = accuracy.measure(logits, split.labels)
    assert measured["accuracy"] == 0.75
    assert measured["nll"] == pytest.approx(float(nn.functional.cross_entropy(logits, split.labels)))
    accuracy.write_confusion(logits, split, ["cat", "dog"], tmp_path / "confusion.csv")
    rows = pd.read_csv(tmp_path / "confusion.csv")
    assert list(zip(rows.actual, rows.predicted, strict=True)) == [
        ("cat", "cat"), ("dog", "dog"), ("dog", "cat"), ("dog", "dog"),
    ]  # fmt: skip


def test_size_counts_what_is_there(tmp_path: Path) -> None:
    network = networks.build(replace(SPEC, norm="none"), seed=0).eval()
    artifact.save(artifact.dense(network, "classifier"), tmp_path / "m", {})
    with torch.no_grad():
        network.fc.weight.zero_()
    measured = size.measure(network, tmp_path / "m", tmp_path / "m")
    total = sum(w.numel() for w in network.parameters())
    convolutions = [(8, 8, 9, 64), (16, 8, 9, 16), (16, 16, 9, 16), (32, 16, 9, 4), (32, 32, 9, 4)]
    macs = sum(out * into * k * pixels for out, into, k, pixels in [(8, 1, 9, 64), *convolutions[1:]])
    assert measured == {
        "size_bytes": (tmp_path / "m").stat().st_size,
        "compression_ratio": 1.0,
        "bits_per_weight": pytest.approx(8 * (tmp_path / "m").stat().st_size / total),
        "parameters": total,
        "nonzero_parameters": total - network.fc.weight.numel(),
        "macs": macs + network.fc.weight.numel(),
    }


def linear_only() -> Model:
    """A 'strided' network is overkill: count by hand what its fc adds in each encoding."""
    network = networks.build(replace(SPEC, norm="none"), seed=0).eval()
    return artifact.dense(network, "classifier")


def test_micronet_storage_by_the_challenges_rules() -> None:
    model = linear_only()
    dense = micronet.storage_of(model)
    values = sum(t.decode().numel() for t in model.tensors.values())
    assert dense == values / 2  # 16 bits for free

    weight = model.tensors["fc.weight"].decode()  # (10, 128)
    rest = values - weight.numel()
    half = weight.clone()
    half.view(-1)[::2] = 0

    def stored(encoded: object) -> float:
        return micronet.storage_of(replace(model, tensors={**model.tensors, "fc.weight": encoded}))

    assert stored(Sparse(half)) == rest / 2 + (weight.numel() // 2) / 2 + weight.numel() / 32
    # Quantized below 16 bits somewhere: floats count in full.
    assert stored(Int8(torch.ones(10, 128).char(), torch.ones(10))) == rest + weight.numel() / 4 + 10
    norm = {f"norm.{name}": Dense(torch.ones(8)) for name in ("weight", "bias", "running_mean", "running_var")}
    bare = {name: norm[name] for name in ("norm.running_mean", "norm.running_var")}
    for tensors in (norm, bare):  # a scale and a shift for each channel, also of a norm that learns neither
        assert micronet.storage_of(replace(model, tensors={**model.tensors, **tensors})) == (values + 16) / 2
    codes = torch.zeros(weight.numel() // 4, dtype=torch.long)
    assert stored(Coded(codes, torch.zeros(16, 4).half(), (10, 128))) == rest + len(codes) * 4 / 32 + 64 / 2


def test_micronet_operations_by_hand() -> None:
    model = linear_only()
    activations = 8 * 64 + 2 * 16 * 16 + 2 * 32 * 4  # ReLU: one comparison each
    macs = size_macs(model)
    assert micronet.operations_of(model).wide == pytest.approx((2 * macs + activations) / 2)
    weight = model.tensors["fc.weight"].decode()
    emptied = replace(model, tensors={**model.tensors, "fc.weight": Sparse(torch.zeros_like(weight))})
    assert micronet.operations_of(model).wide - micronet.operations_of(emptied).wide == weight.numel()
    eight = replace(model, tensors={**model.tensors, "fc.weight": Int8(torch.ones(10, 128).char(), torch.ones(10))})
    # The freebie is gone everywhere else; this layer adds in 32 bits and multiplies in those of the wider one. Its ten
    # outputs are scaled.
    elsewhere = 2 * (macs - weight.numel()) + activations + 10
    assert micronet.operations_of(eight) == pytest.approx([elsewhere + weight.numel() * (32 + 32) / 32] * 3)
    eight = replace(eight, activations={"fc:in": Range(0.1, 0)})
    found, elsewhere = micronet.operations_of(eight), elsewhere + 128  # inputs that are rounded
    assert found.wide == pytest.approx(elsewhere + weight.numel() * (8 + 32) / 32)
    # 127 sums of 128 products of 16 bits, and a bias in 32: in 23 bits, or 64 in 16, 32 in 17, ..., 1 in 22.
    narrow = [127 * 23, sum(2 ** (6 - level) * (16 + level) for level in range(7))]
    assert found[1:] == pytest.approx([elsewhere + (weight.numel() * 8 + 10 * (of + 32)) / 32 for of in narrow])


def test_micronet_counts_a_shared_input_once_and_transposed_products_by_their_inputs() -> None:
    network = networks.build(
        networks.Spec(f"{OWN}:SharedInput", channels=1, image_size=8, outputs=2, arguments={}), seed=0
    ).eval()
    model = artifact.dense(network, "classifier")
    known = 2 * 4 * 64 * 2 + 4 * 64 + 2 * 4 * 2 * 4 * 64 + 2 * 256  # convolutions, sum, transposed, mean
    assert micronet.operations_of(model).wide == pytest.approx(known / 2)
    layers = ["body.first", "body.second"]
    ones = {f"{name}.weight": Int8(torch.ones(4, 1, 1, 1).char(), torch.ones(4)) for name in layers}
    ranges = {f"{name}:in": Range(0.1, 0) for name in layers}
    known += 2 * 4 * 64 - 2 * 4 * 64 * (1 - 8 / 32) + 64  # steps, narrower products, one rounded image
    whole = replace(model, tensors={**model.tensors, **ones}, activations=ranges)
    assert micronet.operations_of(whole).wide == pytest.approx(known)


class Sequence(nn.Module):
    """What a module makes of 16 vectors, averaged."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(1, 16, 2, 2), inner, nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(self.first(x).flatten(2).transpose(1, 2))
        return self.last((found[0] if isinstance(found, tuple) else found).mean(1))


class Pixels(nn.Module):
    """What a module makes of 8 maps of 8x8, averaged."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(1, 8, 1), inner, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.first(x)).mean((2, 3)))


def counted(network: nn.Module) -> float:
    """Operations by MicroNet's rules, but each in full."""
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    taken = taken_in(network.eval(), images, head=None, normalisation=None, arguments=None, seed=0, labelled=False)
    return 2 * micronet.operations_of(taken.model).wide


@pytest.mark.parametrize("kind", ["encoder", "attention", "lstm", "bilinear"])
def test_micronet_counts_the_products_of_fused_layers(kind: str) -> None:
    class Attention(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, x, x, need_weights=False)[0]

    class Bilinear(nn.Bilinear):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, x)

    inner: dict[str, Callable[[], nn.Module]] = {
        "encoder": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        "attention": lambda: Attention(16, 2, batch_first=True),
        "lstm": lambda: nn.LSTM(16, 16, batch_first=True),
        "bilinear": lambda: Bilinear(16, 16, 16),
    }
    torch.manual_seed(0)
    network = Sequence(inner[kind]())
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.01)  # biases begin with zeros, whose products are free
    products = {
        "encoder": 16 * (16 * 48 + 16 * 16 + 2 * 16 * 32) + 2 * 16 * 16 * 16,
        "attention": 16 * (16 * 48 + 16 * 16) + 2 * 16 * 16 * 16,
        "lstm": 16 * 2 * 16 * 64,
        "bilinear": 16 * (16**3 + 16**2),
    }
    macs = products[kind] + 16 * 4 * 16 + 32
    assert 2 * macs < counted(network) < 2.3 * macs


@pytest.mark.parametrize(
    ("inner", "operations"),
    [
        (nn.MaxPool2d(3, 1, 1), 8 * 64 * 8),
        (nn.AvgPool2d(3, 1, 1), 8 * 64 * 9),
        (nn.Upsample(scale_factor=1.0, mode="bilinear"), 8 * 64 * 7),
        (nn.PReLU(8), 8 * 64 * 2),
        (nn.InstanceNorm2d(8), 8 * 64 * 6),
        (nn.Threshold(0.1, 0.0), 8 * 64),
        (nn.Hardshrink(), 8 * 64),
    ],
)
def test_micronet_counts_every_input_of_a_pool_and_every_function(inner: nn.Module, operations: int) -> None:
    assert counted(Pixels(inner)) - counted(Pixels(nn.Identity())) == operations


def test_micronet_counts_what_an_adaptive_pool_reads_twice() -> None:
    plain = counted(Pixels(nn.Identity()))
    windows = 10  # of 3, 4 and 3 of 8
    assert counted(Pixels(nn.AdaptiveAvgPool2d(3))) - plain == 8 * (windows**2 + 9 - 64)  # the mean is of 9
    assert counted(Pixels(nn.AdaptiveMaxPool2d(3))) - plain == 8 * (windows**2 - 9 + 9 - 64)


def size_macs(model: Model) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    network, counter = network_of(model), FlopCounterMode(display=False)
    with counter:
        network(torch.zeros(1, 1, 8, 8))
    return counter.get_total_flops() // 2


def test_micronets_published_simplified_count() -> None:
    """PunyNet's 0.1906 is these two quotients; ours divides by the same references."""
    model = linear_only()
    measured = micronet.measure(model, macs=size_macs(model))
    assert measured["simplified"] == pytest.approx(measured["storage"] / 36.5e6 + size_macs(model) / 10.49e9)
    assert measured["score"] > measured["simplified"] > 0
    assert pytest.approx(0.1906, abs=1e-4) == 0.624e6 / micronet.STORAGE + 1.82e9 / micronet.OPERATIONS


def test_pareto_front() -> None:
    assert pareto_front([3, 1, 2, 4], [1.0, 5.0, 5.0, 2.0]) == [1, 0]
    assert pareto_front([1, 1], [2.0, 1.0]) == [1]
    assert pareto_front([1, 2, 3], [1.0, 2.0, 1.5], taken=1) == [0, 1], "the third is worse than the first"


def test_what_cannot_be_told_apart_is_not_worth_its_bytes() -> None:
    losses, lost = [3.0, 1.0, 0.9, 0.0], [[2.9, 3.1], [0.5, 1.5], [0.4, 1.4], None]  # the last one is the teacher

    def apart(first: int, second: int) -> bool:
        return told_apart(lost[first], lost[second])

    assert pareto_front([1, 2, 3, 4], losses) == [0, 1, 2, 3]
    assert pareto_front([1, 2, 3, 4], losses, apart) == [0, 1, 3]
    lost[1] = [-0.1, 2.1]
    assert pareto_front([1, 2, 3, 4], losses, apart) == [0, 1], "as good as the teacher, as far as one can tell"
    assert told_apart(None, None), "figures without intervals count as they are"


def test_table_shows_each_figure_in_its_unit(small: params.Params, tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    lost = {"fid": 0.5, "fid_interval": [-0.5, 1.5]}
    card = {"fid": 3.14159, "fid_interval": [2.5, 3.75], "lost": lost, "ood_auroc": {"noise": 1.0}, "size_bytes": 12345}
    (tmp_path / "cards/ebm-quantize.json").write_text(json.dumps(card))
    rows = collect(small, tmp_path)
    names = rows[["target", "model", "chain"]].iloc[0].tolist()
    assert names == ["ebm", "ebm-quantize", "distill → quantize"]
    assert shown(rows).iloc[0].to_dict() == {"fid": "≈ 3.14", "ood_auroc.noise": "1.000", "size_bytes": "12,345"}
    assert list(shown(rows, everything=False)) == ["fid", "size_bytes"]
    assert between(rows.iloc[0], "fid") == "2.5–3.75" and between(rows.iloc[0], "accuracy") == ""
    assert between({"fid_interval": [998.4, 12345.6]}, "fid") == "998–12346"
    lost["fid_interval"] = [0.1, 0.9]
    (tmp_path / "cards/ebm-quantize.json").write_text(json.dumps(card))
    assert shown(collect(small, tmp_path))["fid"].iloc[0] == "3.14"


def test_long_names_leave_the_figures_their_room(small: params.Params, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"classifier-{'of-many-words-' * 6}{end}" for end in ("first", "second")]
    figures = {"target": "classifier", "chain": "prune", "accuracy": 0.9123, "size_bytes": 12345}
    show(pd.DataFrame([{**figures, "model": name} for name in names]), small)
    said = capsys.readouterr().out
    assert said.count("91.23%") == said.count("12,345") == 2
    drawn = front.drawing(pd.DataFrame([{**figures, "model": name} for name in names]).set_index("model"))
    assert drawn.count("…</text>") == 2 and all(f"<title>{name}" in drawn for name in names)
    many = pd.DataFrame([{**figures, "size_bytes": 100 * i} for i in range(1, 31)]).rename(index=str)
    assert ">7</text>" not in front.drawing(many) and "<title>7 (prune): " in front.drawing(many)


@pytest.mark.parametrize("label", ["[bold]cat", "[/dog]", ":cat:"])
def test_table_shows_the_names_of_classes_as_they_are(
    label: str, small: params.Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cards").mkdir()
    most = {"label": label, "own": 0.5, "teacher": 0.75, "images": 8}
    card = {"accuracy": 0.5, "lost_most": most, "size_bytes": 12345}
    (tmp_path / "cards/ebm-quantize.json").write_text(json.dumps(card))
    show(collect(small, tmp_path), small, everything=True)
    assert f"{label}: 75% to 50%" in capsys.readouterr().out


def test_the_page_recommends_the_smallest_that_is_as_good(small: params.Params, tmp_path: Path) -> None:
    def card(accuracy: float, size: int, lost: list[float] | None) -> dict[str, Any]:
        figures = {"accuracy": accuracy, "accuracy_interval": [accuracy - 0.02, accuracy + 0.02]}
        figures |= {"lost": {"accuracy_interval": lost}} if lost else {}
        return {**figures, "size_bytes": size, "compression_ratio": 1000 / size, "validation": figures}

    models = {
        "classifier": card(0.95, 1000, None),
        "classifier-prune": card(0.94, 400, [-0.01, 0.03]),
        "classifier-pq": card(0.93, 100, [-0.001, 0.04]),
        "classifier-distill": card(0.9, 50, [0.01, 0.09]),
    }
    (tmp_path / "cards.json").write_text(json.dumps(models))
    page.write(small, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "Take <b>classifier-pq</b>: 100 bytes, 10.0 times smaller" in text
    assert text.count('<g class="on">') == 2 and text.count('class="bar"') == 4
    assert "<td>≈ 93.00%<small>91–95</small></td>" in text
    models["classifier-pq"]["validation"]["lost"]["accuracy_interval"] = [0.001, 0.04]
    models["classifier-prune"]["validation"]["lost"]["accuracy_interval"] = [0.001, 0.02]
    (tmp_path / "cards.json").write_text(json.dumps(models))
    page.write(small, tmp_path)
    assert "No branch is as good as its teacher" in (tmp_path / "report.html").read_text()


def test_names_with_two_dollars_are_no_formulas(scorer: networks.Backbone, tmp_path: Path) -> None:
    name = "under $5^{, over $10"
    (tmp_path / "plots/models/x").mkdir(parents=True)
    (tmp_path / "plots/models/x/confusion.csv").write_text(f'actual,predicted\n"{name}",b\nb,"{name}"\n')
    assert "2 test images" in page._confusion("x", tmp_path)
    (tmp_path / "plots/curves/x").mkdir(parents=True)
    for head, values in (("amount,added_loss", "0.5,1"), ("int8,added_loss", "1,1")):
        (tmp_path / "plots/curves/x/sensitivity.csv").write_text(f'layer,{head}\n"{name}",{values}\nb,{values}\n')
        assert "costs</h3>" in page._sensitivity("x", tmp_path)
    gallery.write_classes(scorer, torch.zeros(2, 1, 8, 8), [name] * 10, tmp_path / "classes.png")


def test_what_compression_changed_is_shown(small: params.Params, splits: data.Splits, tmp_path: Path) -> None:
    test = splits.test
    right = nn.functional.one_hot(test.labels, 10).float()
    own, theirs = right.clone(), right.clone()
    own[3] = right[3].roll(1)  # lost
    theirs[5] = right[5].roll(1)  # won
    place = tmp_path / "plots/models/classifier-pq"
    place.mkdir(parents=True)
    accuracy.write_confusion(own, test, splits.classes, place / "confusion.csv", theirs)
    gallery.write_changed(test.images, own, theirs, place / "changed.png")
    figures = {"accuracy": 0.9, "size_bytes": 10, "compression_ratio": 2.0}
    (tmp_path / "cards.json").write_text(json.dumps({"classifier-pq": figures}))
    page.write(small, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "2 of 359 answers differ; 1 were right, 1 are right now." in text
    lost, won = (splits.classes[int(test.labels[i])] for i in (3, 5))
    assert f"Classes that lost: {lost} (1 of " in text
    (first, second) = re.findall(r'<span class="(\w+)" title="(\w+); the teacher says (\w+), this model (\w+)"', text)
    assert first[:3] == ("lost", lost, lost) and first[3] != lost
    assert second[:2] == ("won", won) and second[3] == won
    gallery.write_changed(test.images, own, own, place / "changed.png")
    assert not (place / "changed.png").exists()


def test_rank_correlation_is_spearmans() -> None:
    a, b = torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 1, 50)
    from scipy.stats import spearmanr

    assert ood.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert ood.rank_correlation(a, a.exp()) == pytest.approx(1)
    few, others = (10 * a).round() / 10, (3 * b).round()  # with ties
    assert ood.rank_correlation(few, others) == pytest.approx(spearmanr(few, others).statistic)
    assert ood.rank_correlation(torch.zeros(9), torch.zeros(9)) == 0, "a constant orders nothing"


@pytest.mark.parametrize("quality", ["accuracy", "fid"])
def test_another_test_set_changes_no_choice(quality: str) -> None:
    names = ["a", "b", "c", "d"]
    rows = pd.DataFrame(
        {
            "size_bytes": [100, 50, 30, 20],
            f"validation.{quality}": [0.9, 0.8, 0.85, 0.4],
            quality: [0.1, 0.2, 0.3, 0.4],
        },
        index=names,
    )
    other = rows.assign(**{quality: rows[quality].to_numpy()[::-1]})
    wanted = {"accuracy": ["d", "c", "a"], "fid": ["d"]}[quality]
    assert list(front_of(rows).index) == list(front_of(other).index) == wanted
    assert list(front_of(rows.drop(columns=f"validation.{quality}")).index) != wanted  # as old tables are read
