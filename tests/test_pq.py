"""Product quantization: the Gram identity against brute force, the solver, and coded networks."""

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, with_changes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.nn import functional as F

import lowenergy
from lowenergy import data, networks, params, targets, training
from lowenergy.base.errors import UserError
from lowenergy.compression.pq import activations, allocation, encoding, layers, price
from lowenergy.compression.pq import network as pq
from lowenergy.compression.pq.codebooks import Metric, blocks_of, input_moments, learn
from lowenergy.data.sources import digits
from lowenergy.storage import artifact
from lowenergy.storage.coded import coded_weights
from lowenergy.storage.encodings import Coded, entropy
from lowenergy.training import Run, chance

LAYERS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 2))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(LAYERS, st.sampled_from(["kernel", "row"]), st.integers(0, 2**31))
def test_moments_give_the_output_error_of_any_block(shape: tuple[int, int, int, int], cut: str, seed: int) -> None:
    """eᵀ G e is the brute-force mean square of what the layer answers to when one block is e and the others are 0, and
    with the covariance it is the variance."""
    channels, out, kernel, stride = shape
    layer = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    d = {"kernel": kernel * kernel, "row": kernel}[cut] if kernel > 1 else channels
    inputs, error = random(2, channels, 5, 5, seed=seed) + 1, random(d, seed=seed + 1)
    # Two batches add up to one.
    given = networks.padded(layer, inputs, layer.padding)
    moments = input_moments(layer, given[:1], d) + input_moments(layer, given[1:], d)
    for position in range(channels * kernel * kernel // d):
        weight = torch.zeros(1, channels * kernel * kernel)
        weight[0, position * d : (position + 1) * d] = error
        answer = F.conv2d(inputs, weight.view(1, channels, kernel, kernel), None, stride, kernel // 2).double()
        for gram, wanted in (
            (moments.gram(), answer.square().mean()),
            (moments.covariance(), answer.var(correction=0)),
        ):
            torch.testing.assert_close((error @ gram[position] @ error).double(), wanted, rtol=1e-3, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(2, 20), st.integers(1, 6), st.integers(0, 2**31))
def test_learn_is_kmeans_of_the_output_error(positions: int, d: int, out: int, k: int, seed: int) -> None:
    """Every block has the codeword of least w ‖X̃(v - c)‖² over sampled rows X̃, by brute force, no other codeword
    improves a cluster, and the error reported is the error there is."""
    rows, blocks = random(positions, 60, d, seed=seed), random(positions, out, d, seed=seed + 1)
    weights = torch.rand(out, generator=Generator().manual_seed(seed)) + 0.1
    metric = Metric(torch.einsum("prd,pre->pde", rows, rows) / 60, weights)
    found = learn(blocks, metric, min(k, positions * out), steps=50, generator=Generator().manual_seed(seed))

    def errors(codewords: Tensor) -> Tensor:  # (p, o, k)
        off = blocks[:, :, None] - codewords
        return torch.einsum("prd,pokd->pork", rows, off).square().mean(2) * weights[:, None]

    here = errors(found.codewords)
    chosen = here.gather(2, found.codes[..., None])[..., 0]
    torch.testing.assert_close(chosen, here.min(2).values, rtol=1e-2, atol=1e-3)
    everything = errors(torch.zeros(1, d)).sum()
    assert found.after == pytest.approx(float(chosen.sum() / everything), rel=1e-2, abs=1e-3)
    assert found.after <= found.before * (1 + 1e-3) + 1e-6
    for nudge in (1e-2, -1e-2):
        moved = errors(found.codewords + nudge).gather(2, found.codes[..., None])[..., 0]
        assert moved.sum() >= chosen.sum() * (1 - 1e-3)


def test_a_price_of_bits_trades_error_for_entropy() -> None:
    blocks, metric = random(30, 40, 4), Metric(torch.eye(4).expand(30, 4, 4), torch.ones(40))
    found = [learn(blocks, metric, 64, steps=20, generator=Generator().manual_seed(0), rate=r) for r in (0, 0.05, 0.8)]
    errors, spent = [one.after for one in found], [entropy(one.codes) for one in found]
    assert errors == sorted(errors) and errors[0] < 0.9 * errors[-1]
    assert spent == sorted(spent, reverse=True) and spent[-1] < 0.7 * spent[0]
    assert len(found[-1].codewords) < 64, "codewords that nothing uses are dropped"
    # The same bits, spent on fewer codewords of equal frequency, buy less.
    plain = learn(blocks, metric, round(2 ** spent[-1]), steps=20, generator=Generator().manual_seed(0))
    assert errors[-1] < plain.after


def test_what_weighs_more_is_kept_better() -> None:
    blocks, codes = random(1, 600, 4), {}
    gram = torch.diag(torch.tensor([100.0, 1.0, 1.0, 0.01]))[None]
    weights = torch.tensor([10.0, 0.1]).repeat_interleave(300)
    for kind, metric in (("aware", Metric(gram, weights)), ("plain", Metric(torch.eye(4)[None], torch.ones(600)))):
        found = learn(blocks, metric, 16, steps=20, generator=Generator().manual_seed(0))
        error = blocks - found.codewords[found.codes]
        codes[kind] = float((torch.einsum("pod,pde,poe->po", error, gram, error) * weights).sum())
    assert codes["aware"] < 0.5 * codes["plain"]


def test_as_many_codewords_as_blocks_is_exact_and_more_are_refused(generator: Generator) -> None:
    blocks, metric = random(1, 20, 3), Metric(torch.eye(3)[None], torch.ones(20))
    found = learn(blocks, metric, 20, steps=20, generator=generator)
    torch.testing.assert_close(found.codewords[found.codes], blocks, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="21 codewords for 20 blocks"):
        learn(blocks, metric, 21, steps=1, generator=generator)


def test_repeated_blocks_and_dead_inputs_do_no_harm(generator: Generator) -> None:
    blocks = torch.ones(2, 15, 3)
    for grams in (torch.zeros(2, 3, 3), torch.stack([torch.eye(3), torch.zeros(3, 3)])):
        found = learn(blocks, Metric(grams, torch.ones(15)), 4, steps=5, generator=generator)
        torch.testing.assert_close(found.codewords[found.codes], blocks)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_blocks_are_row_major_and_within_an_output_channel(out: int, positions: int, d: int) -> None:
    weight = torch.arange(out * positions * d).view(out, positions * d)
    blocks = blocks_of(weight, d)
    assert blocks.shape == (positions, out, d)
    assert torch.equal(blocks.transpose(0, 1).reshape(weight.shape), weight)


# -- networks ---------------------------------------------------------------------------------------------------------


def network(norm: str = "batch") -> networks.Backbone:
    """Untrained, but with norms that have seen the digits and affine parts that are not all the same."""
    net = networks.build(networks.Spec("resnet8", 16, "3x3", "relu", norm, 1, 8, 10), seed=0)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "norm" in name:
                value.add_(0.3 * random(len(value), seed=len(name)))
    networks.refresh_batchnorm(net, data.to_float(digits.read(None)[0].images[:500]))
    return net.eval()


@pytest.fixture
def setting(small_values: Any, splits: data.Splits, tmp_path: Path) -> Any:
    """(changes) -> what pq.compress takes, on an untrained classifier."""

    def make(changes: dict[str, Any] | None = None, root: Path = tmp_path) -> tuple[Any, ...]:
        changes = {"allocation": "uniform", **(changes or {})}
        p = params.check(with_changes(small_values, {f"pq.{k}": v for k, v in changes.items()}))
        run = Run("classifier-pq", 0, [p.pq], root=root)
        net = network()
        objective = targets.get("classifier").objective(copy.deepcopy(net), splits, p.classifier, run)
        return net, "classifier", objective, p.pq, run

    return make


@pytest.mark.parametrize("gram", ["covariance", "position", "layer", "none"])
def test_coding_keeps_the_function_roughly(setting: Any, gram: str) -> None:
    net, _, objective, p, run = setting({"gram": gram})
    images = objective.inputs[:200]
    before = net(images)
    pq.code_layers(
        net, objective, images, None, allocation.shapes_of(net, objective, images, None, p, run), 0.0, p, run
    )
    networks.refresh_batchnorm(net, images)
    assert F.cosine_similarity(before, net(images), dim=1).mean() > 0.8
    for name, layer, codebook, code in coded_weights(net):
        found = layer.weight.flatten(1).unflatten(1, (-1, codebook.shape[1])).flatten(0, 1).unique(dim=0)
        assert len(found) <= len(codebook) <= p.codewords, name
        assert code.codes.dtype == torch.uint8
    assert len(list(coded_weights(net))) == len(networks.coded_layers(net)) - 1, "all but the first convolution"


def test_biases_put_the_mean_of_the_outputs_right() -> None:
    layer, inputs = nn.Conv2d(4, 8, 3, padding=1), random(20, 4, 6, 6) + 2
    before = layer(inputs)
    moments = input_moments(layer, networks.padded(layer, inputs, 1), 9)
    blocks = blocks_of(layer.weight.detach(), 9)
    found = learn(
        blocks, Metric(moments.covariance(), torch.ones(8)), 4, steps=10, generator=Generator().manual_seed(0)
    )
    decoded = found.codewords[found.codes]
    layer.weight.data = decoded.transpose(0, 1).reshape(layer.weight.shape)
    assert (layer(inputs) - before).mean((0, 2, 3)).abs().max() > 0.01
    pq.correct_bias(layer, blocks - decoded, moments)
    torch.testing.assert_close(layer(inputs).mean((0, 2, 3)), before.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)


def test_output_weights_say_what_an_error_does_to_the_logits() -> None:
    """Against brute force: noise of one strength on one channel at a time, and how far the logits move."""
    net, images = network("none"), random(64, 1, 8, 8)
    weights = activations.output_weights(net, images, Generator().manual_seed(0))["features.2.first.conv"]
    layer, base, moved = net.features[2].first.conv, net(images), []
    for channel in range(16):

        def add(module: nn.Module, inputs: object, output: Tensor, at: int = channel) -> Tensor:
            noise = torch.zeros_like(output)
            noise[:, at] = 1e-3 * random(len(output), *output.shape[2:])
            return output + noise

        handle = layer.register_forward_hook(add)
        moved.append(float((net(images) - base).square().sum(1).mean()) / 1e-6)
        handle.remove()
    assert torch.corrcoef(torch.stack([weights, torch.tensor(moved)]))[0, 1] > 0.8
    torch.testing.assert_close(weights.mean(), torch.tensor(moved).mean(), rtol=0.3, atol=0)


def norms_of(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.slow
def test_layer_finetuning_lowers_the_loss_and_moves_codewords_only(setting: Any) -> None:
    net, _, objective, p, run = setting(
        {"layer_finetune.steps": 60, "layer_finetune.lr": 0.05, "codewords": 8, "block_conv": 9}
    )
    images = objective.inputs[:200]
    changed = []
    for steps in (0, 60):
        coded = copy.deepcopy(net)
        q = p.model_copy(update={"layer_finetune": p.layer_finetune.model_copy(update={"steps": steps})})
        own = Run("classifier-pq", 0, [steps], root=run.checkpoints.parent)
        shapes = allocation.shapes_of(coded, objective, images, None, q, own)
        pq.code_layers(coded, objective, images, None, shapes, 0.0, q, own)
        coded.train()
        changed.append(float(objective.loss(coded, torch.arange(500), own)[0]))
        both = zip(norms_of(coded), norms_of(net), strict=True)
        assert all(torch.equal(after.weight, before.weight) for after, before in both)
    assert changed[1] < 0.95 * changed[0]  # 0.90 on one kind of processor, less on another


def test_a_budget_is_met_and_an_impossible_one_refused(setting: Any, tmp_path: Path) -> None:
    plain = len(artifact.to_bytes(pq.compress(*setting()), {}))
    budget = round(0.85 * plain)
    model = pq.compress(*setting({"budget_bytes": budget}))
    artifact.save(model, tmp_path / "model", {})
    assert 0.97 * budget < (tmp_path / "model").stat().st_size <= budget
    shares = artifact.bytes_by_part(tmp_path / "model")
    assert sum(shares.values()) == (tmp_path / "model").stat().st_size and min(shares.values()) > 0
    with pytest.raises(UserError, match=r"pq.budget_bytes = 3000: the smallest file found has [\d,]+ bytes"):
        pq.compress(*setting({"budget_bytes": 3000}))


def test_a_budget_has_room_for_the_warning_that_comes_last(setting: Any) -> None:
    network, target, _, p, run = setting({"budget_bytes": 20000})
    accepting = p.model_copy(update={"accept_chance": True})
    said = {**run.provenance, "warnings": [chance.POSSIBLE_WARNING]}
    assert price._size(network, target, accepting, run) == len(
        artifact.to_bytes(encoding.encoded(network, target), said)
    )


def test_a_budget_that_binds_nothing_is_not_searched_for(setting: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pq.compress(*setting({"budget_bytes": 10**6, "finetune.epochs": 0}))
    prices = re.findall(r"at (\S+) times the price of a bit", capsys.readouterr().out)
    assert prices == ["1", "0"]


def test_of_files_that_fit_a_budget_the_largest_is_kept_whatever_comes_after(
    setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter([1000, 26000, 22000, *[30000] * 30])  # the first is the smallest that there can be
    seen: list[list[Tensor]] = []

    def to_bytes(model: artifact.Model, provenance: Any) -> bytes:
        seen.append([part.codes for part in model.tensors.values() if isinstance(part, Coded)])
        return bytes(next(sizes))

    net, target, objective, p, run = setting({"budget_bytes": 23000, "finetune.epochs": 0})
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "to_bytes", to_bytes)
        patch.setattr(pq, "keep_budget", lambda *_: None)
        model = pq.compress(net, target, objective, p, run)
    kept = [part.codes for part in model.tensors.values() if isinstance(part, Coded)]
    assert all(map(torch.equal, kept, seen[2])) and not all(map(torch.equal, kept, seen[1]))


def test_a_layer_of_one_block_is_coded(setting: Any, tmp_path: Path) -> None:
    """What pruning nearly everything leaves of a narrow network: one channel after the other."""
    _, target, objective, p, run = setting({"block_conv": 9, "small_weights": 0, "finetune.epochs": 1})
    spec = networks.Spec("cnn", 2, "3x3", "swish", "none", 1, 8, 10)
    kept = {
        name: value[:1, :1] if value.ndim == 4 else value[:1] if "features" in name else value
        for name, value in networks.build(spec, seed=0).state_dict().items()
    }
    kept["fc.weight"] = kept["fc.weight"][:, :4]  # of one channel of 2x2
    net = networks.build_with(spec, kept)
    artifact.save(pq.compress(net, target, objective, p, run), tmp_path / "model", {})
    assert lowenergy.load(tmp_path / "model")(objective.inputs[:5]).isfinite().all()


def test_stored_network_answers_as_the_one_finetuned(setting: Any, tmp_path: Path) -> None:
    """float16, BatchNorm as scale and shift, entropy-coded symbols: nothing of it shows in the answers."""
    net, target, objective, p, run = setting()
    images = objective.inputs[:100]
    pq.code_layers(
        net, objective, images, None, allocation.shapes_of(net, objective, images, None, p, run), 0.0, p, run
    )
    model = encoding.encoded(net, target)
    artifact.save(model, tmp_path / "model", {})
    loaded, coded = lowenergy.load(tmp_path / "model"), lowenergy.load(tmp_path / "model", coded=True)
    torch.testing.assert_close(loaded(images), net(images), rtol=0.02, atol=0.02)
    torch.testing.assert_close(coded(images), loaded(images))
    kept = sum(t.numel() * t.element_size() for t in [*coded.parameters(), *coded.buffers()])
    dense = sum(t.numel() * t.element_size() for t in [*loaded.parameters(), *loaded.buffers()])
    assert kept < dense / 3
    assert isinstance(model.tensors["fc.weight"], Coded)


def test_blocks_and_codewords_follow_the_params(setting: Any) -> None:
    p = setting(
        {"codewords": 256, "block_conv": 18, "block_small": 3, "small_weights": 1000, "vectors_per_codeword": 4}
    )[3]
    big, small, odd = nn.Conv2d(32, 32, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(33, 32, 3)
    assert [layers.block_length(layer, p) for layer in (big, small, odd)] == [18, 3, 11]
    assert layers.block_length(nn.Conv2d(6, 8, 1), p) == 3 and layers.block_length(nn.Linear(10, 3), p) == 2
    assert layers.codewords_for(big, 18, p) == 128, "a power of two, at most blocks / 4"
    assert layers.codewords_for(nn.Conv2d(512, 512, 3), 9, p) == 256
    assert layers.codewords_for(nn.Linear(4, 2), 4, p) == 2
    assert layers.codewords_for(nn.Conv2d(1, 1, 3), 9, p) == 1, "there is one block"


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import test_pq
from lowenergy import data
from lowenergy import params
from lowenergy import targets
from lowenergy import training
from lowenergy.compression.pq import network as pq

root = sys.argv[1]
p = params.load(f"{root}/params.yaml")
run = training.Run("classifier-pq", 0, [p.pq], root=root)
net = test_pq.network()
keep = training.keep

def keep_and_die(run, part, content):
    keep(run, part, content)
    if content.get("done") == 4:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)

training.keep = keep_and_die
objective = targets.get("classifier").objective(test_pq.network(), data.prepare(p.data, 0).read(), p.classifier, run)
pq.compress(net, "classifier", objective, p.pq, run)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_at_the_layer_reached_with_the_same_bytes(
    setting: Any, small_values: Any, tmp_path: Path, capfd: Any
) -> None:
    from ruamel.yaml import YAML

    changes = {"layer_finetune.steps": 2, "budget_bytes": 20000, "allocation": "sensitivity"}
    values = with_changes(small_values, {f"pq.{k}": v for k, v in changes.items()})
    YAML(typ="safe").dump(values, tmp_path / "params.yaml")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    outcomes = []
    for root in (tmp_path, tmp_path / "uninterrupted"):
        model = pq.compress(*setting(changes, root))
        outcomes.append(artifact.to_bytes(model, {}))
        training.finished(Run("classifier-pq", 0, [], root=root))
        assert not list(root.rglob("*.pt"))
    assert capfd.readouterr().out.count("resumed after 4 layers") == 1
    assert outcomes[0] == outcomes[1]


def test_refreshed_norms_have_the_statistics_of_the_images() -> None:
    net = networks.build(networks.Spec("cnn", 4, "3x3", "relu", "batch", 1, 8, 3), seed=0)
    images = torch.rand(40, 1, 8, 8)
    networks.refresh_batchnorm(net, images, batch_size=20)
    mean = net.features[0].conv(images).mean((0, 2, 3))
    torch.testing.assert_close(net.features[0].norm.running_mean, mean, rtol=1e-3, atol=1e-4)
