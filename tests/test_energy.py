"""Sampling and contrastive training of energies whose answer is known."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from lowenergy import data, energies, networks, params
from lowenergy.base import UserError
from lowenergy.energies import (
    EnergyMatch,
    OwnChains,
    ReplayBuffer,
    energy_gradient,
    energy_of,
    langevin_chain,
    logits_and_gradient,
    sample,
)
from lowenergy.params import EnergyMatching, Sampler

SPEC = networks.Spec("cnn", 8, "3x3", "swish", "none", channels=1, image_size=8, outputs=10, head="mean")


@pytest.fixture
def matching(small: params.Params) -> EnergyMatching:
    return small.ebm.matching


def langevin_step(energy: energies.Energy, images: Tensor, constants: Sampler, generator: Generator) -> Tensor:
    (state,) = langevin_chain(energy, images, 1, constants, generator)
    return state


def quadratic(images: Tensor) -> Tensor:
    """Lowest at 0.25 everywhere."""
    return (images - 0.25).square().flatten(1).sum(1)


def test_heads() -> None:
    logits = torch.tensor([[1.0, 3.0]])
    assert energies.HEADS["mean"](logits).item() == 2
    assert energies.HEADS["scalar"](logits).item() == 1
    torch.testing.assert_close(energies.HEADS["logsumexp"](logits), -torch.log(torch.exp(logits).sum(1)))


def test_one_langevin_step_is_the_formula(generator: Generator) -> None:
    images = torch.rand(3, 1, 2, 2, generator=generator) * 2 - 1
    constants = Sampler(step_size=0.1, noise=0.05, gradient_clamp=0.7)
    noise = torch.randn(images.shape, generator=Generator().manual_seed(7))
    expected = (images - 0.1 * (2 * (images - 0.25)).clamp(-0.7, 0.7) + 0.05 * noise).clamp(-1, 1)
    before = images.clone()
    torch.testing.assert_close(langevin_step(quadratic, images, constants, Generator().manual_seed(7)), expected)
    assert torch.equal(images, before)


@given(step_size=st.floats(0.01, 100), noise=st.floats(0, 2), clamp=st.floats(0.001, 10), seed=st.integers(0, 2**31))
def test_chains_stay_in_range_and_within_the_clamped_step(
    step_size: float, noise: float, clamp: float, seed: int
) -> None:
    generator = Generator().manual_seed(seed)
    images = energies.uniform_noise((4, 1, 3, 3), generator)
    still = Sampler(step_size=step_size, noise=0.0, gradient_clamp=clamp)
    moved = langevin_step(quadratic, images, still, generator)
    assert (moved - images).abs().max() <= step_size * clamp + 1e-4
    noisy = Sampler(step_size=step_size, noise=noise, gradient_clamp=clamp)
    assert langevin_step(quadratic, images, noisy, generator).abs().max() <= 1


def test_long_chains_reach_the_energys_distribution(generator: Generator) -> None:
    """With E = k/2 (x - m)² and x <- x - a ∇E + s N(0,1), the stationary variance is s² / (1 - (1 - a k)²)."""
    constants = Sampler(step_size=0.05, noise=0.05, gradient_clamp=100.0)
    samples = sample(quadratic, (1, 4, 4), 2000, steps=100, constants=constants, generator=generator, batch_size=700)
    assert samples.shape == (2000, 1, 4, 4)
    variance = 0.05**2 / (1 - (1 - 0.05 * 2) ** 2)
    assert abs(samples.mean() - 0.25) < 0.005
    assert abs(samples.var() / variance - 1) < 0.05


@given(killed_after=st.integers(1, 15), seed=st.integers(0, 2**31))
def test_sampling_goes_on_where_it_was_killed(killed_after: int, seed: int) -> None:
    def draw(**options: Any) -> Tensor:
        constants, generator = Sampler(step_size=0.5, noise=0.1, gradient_clamp=1.0), Generator().manual_seed(seed)
        options |= {"steps": 5, "constants": constants, "generator": generator, "batch_size": 3}
        return sample(quadratic, (1, 3, 3), 7, **options)  # in batches of 3, 3 and 1

    def keep(state: dict[str, Any]) -> None:
        states.append({key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()})
        if len(states) == killed_after:
            raise KeyboardInterrupt

    states: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt):
        draw(keep=keep)
    done = energies.steps_in(states[-1], 5)
    assert done == (3 * killed_after if killed_after <= 10 else 30 + killed_after - 10)
    left: list[int] = []
    assert draw(state=states[-1], progress=left.append).equal(draw())
    assert sum(left) == 7 * 5 - done


def test_chains_that_become_nan_are_one_line(generator: Generator) -> None:
    def rooted(images: Tensor) -> Tensor:
        return (images.flatten(1).mean(1) + 0.2).sqrt()  # has no value where the chains descend to

    constants = Sampler(step_size=1.0, noise=0.0, gradient_clamp=5.0)
    with pytest.raises(UserError, match="9 of 9 chains went where the energy's gradient is NaN; give a smaller"):
        sample(rooted, (1, 4, 4), 9, steps=90, constants=constants, generator=generator)


def test_sampling_leaves_no_gradient_behind(generator: Generator) -> None:
    network = networks.build(SPEC, seed=0)
    constants = Sampler(step_size=1.0, noise=0.01, gradient_clamp=0.1)
    sample(energy_of(network, "mean"), (1, 8, 8), 4, steps=3, constants=constants, generator=generator)
    assert all(w.grad is None and w.requires_grad for w in network.parameters())


def test_the_number_of_chain_states(generator: Generator) -> None:
    constants = Sampler(step_size=1.0, noise=0.01, gradient_clamp=0.1)
    start = torch.zeros(2, 1, 4, 4)
    states = [state.clone() for state in langevin_chain(quadratic, start, 5, constants, generator)]
    assert len(states) == 5
    assert not start.any()
    assert all((a != b).any() for a, b in pairwise(states))


def test_a_restarted_chain_is_young_again(generator: Generator) -> None:
    buffer = ReplayBuffer(100, (1, 2, 2), generator)
    chains, places = buffer.draw(100, fresh_fraction=0.0)
    assert (buffer.put(places, chains, 10) == 10).all()
    chains, places = buffer.draw(100, fresh_fraction=0.3)
    ages = buffer.put(places, chains, 10)
    assert set(ages.tolist()) == {10, 20}
    copy = ReplayBuffer(100, (1, 2, 2), generator)
    copy.load_state_dict(buffer.state_dict())
    assert torch.equal(copy.ages, buffer.ages)


def test_flow_loss_is_least_where_the_energy_carries_noise_to_the_data(generator: Generator) -> None:
    """All data at one point: a slope towards it beats none, and none a slope away from it."""
    images = torch.full((4000, 1, 2, 2), 0.5)

    def loss(slope: float) -> float:
        def energy_to_m(x: Tensor) -> Tensor:
            return slope * (x - 0.5).square().flatten(1).sum(1)

        return energies.flow_loss(energy_to_m, images, generator.manual_seed(0)).item()

    assert loss(0.5) < loss(0.0) < loss(-0.5)
    flat = 7 / 12  # mean (0.5 - u)² of u uniform in [-1, 1]: 1/3 + 1/4
    assert loss(0.0) == pytest.approx(flat, rel=0.03)


def test_a_flow_with_rest_wants_images_in_valleys(generator: Generator) -> None:
    """All data at one point: a slope that ends there gains more than one that does not, with rest more than without."""
    images = torch.full((4000, 1, 1, 1), 0.5)

    def loss(rest: float, width: float) -> float:
        def energy(x: Tensor) -> Tensor:  # of slope 1 outside of the valley
            away = (x - 0.5).abs().flatten(1).sum(1)
            return torch.where(away < width, away.square() / (2 * width + 1e-9), away - width / 2)

        return energies.flow_loss(energy, images, generator.manual_seed(0), rest=rest).item()

    assert loss(0.3, 0.3) / loss(0.3, 0.0) < 0.5 * loss(0.0, 0.3) / loss(0.0, 0.0)
    flat = energies.flow_loss(lambda x: 0 * x.flatten(1).sum(1), images, generator.manual_seed(0), rest=0.5).item()
    of_speed = (0.5 + 2 * 0.5 / 3) / 1.5  # mean square: 1, then falling to 0 at the image, then rising behind it
    assert flat == pytest.approx(7 / 12 * of_speed, rel=0.03)


def test_flow_loss_reaches_the_weights(generator: Generator) -> None:
    network = networks.build(SPEC, seed=0)
    energies.flow_loss(energy_of(network, "mean"), torch.zeros(4, 1, 8, 8), generator).backward()
    gradient = network.features[0].conv.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_replay_buffer_draws_without_repetition_and_restarts_its_share(generator: Generator) -> None:
    buffer = ReplayBuffer(1000, (1, 2, 2), generator)
    buffer.images.fill_(0.5)
    chains, places = buffer.draw(400, fresh_fraction=0.25)
    assert len(places.unique()) == 400
    fresh = (chains != 0.5).flatten(1).any(1).float().mean()
    assert 0.15 < fresh < 0.35
    ages = buffer.put(places, torch.full_like(chains, -1), 5)
    assert (ages == 5).all()
    assert int((buffer.images == -1).all(dim=(1, 2, 3)).sum()) == 400


def test_contrastive_loss_lowers_data_and_raises_chains() -> None:
    real, fake = torch.tensor([1.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    energies.contrastive_loss(real, fake, regularization=0.0).backward()
    assert real.grad is not None and real.grad.item() == 1  # descent lowers it
    assert fake.grad is not None and fake.grad.item() == -1
    assert energies.contrastive_loss(real, fake, regularization=0.1).item() == pytest.approx(0.2)


def test_matching_is_zero_for_the_teacher_and_sees_slopes(matching: EnergyMatching, generator: Generator) -> None:
    teacher, images = networks.build(SPEC, seed=0).eval(), torch.rand(20, 1, 8, 8, generator=generator)
    match = EnergyMatch(energy_of(teacher, "mean"), images, matching, batch_size=7)
    index = torch.arange(20)
    energies, gradients = energy_gradient(energy_of(teacher, "mean"), images)
    assert match.loss(energies, gradients, index, images[:0])[0].item() < 1e-10
    loss, logs = match.loss(energies + 5.0, gradients, index, images[:0])
    assert logs["score_error"] < 1e-10 < loss  # an offset has the same slopes
    student = networks.build(SPEC, seed=1)
    logits, gradients = logits_and_gradient(student, "mean", images)
    assert torch.allclose(gradients, energy_gradient(energy_of(student, "mean"), images)[1])
    match.loss(logits.mean(1), gradients, index, images[:0])[0].backward()
    gradient = student.features[0].conv.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0
    # Images of which nothing was prepared: the teacher looks at them now.
    energies, gradients = energy_gradient(energy_of(teacher, "mean"), torch.cat([images[:3], images[9:]]))
    assert match.loss(energies, gradients, torch.arange(3), images[9:])[0].item() < 1e-10


def test_gradients_that_memory_does_not_hold_are_taken_anew(
    matching: EnergyMatching, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, images = networks.build(SPEC, seed=0).eval(), torch.rand(20, 1, 8, 8, generator=generator)
    index, student = torch.tensor([3, 17, 4]), networks.build(SPEC, seed=1)
    answers = energy_gradient(energy_of(student, "mean"), images[index])

    def losses() -> list[float]:
        match = EnergyMatch(energy_of(teacher, "mean"), images, matching)
        return [float(part) for part in match.loss(*answers, index, images[:0])[1].values()]

    kept = losses()
    monkeypatch.setattr("lowenergy.energies.matching.KEPT", 20 * 64 * 4 - 1)
    assert losses() == pytest.approx(kept, rel=1e-5)
    monkeypatch.setattr("lowenergy.data.images.IN_MEMORY", 4 * 3 * 64 * 4)  # three images at a time
    assert losses() == pytest.approx(kept, rel=1e-5)


def test_matching_without_chains(small: params.Params, generator: Generator) -> None:
    p = small.ebm.matching.model_copy(update={"images": 5, "chains": 0})
    images = torch.randint(256, (8, 1, 4, 4), generator=generator, dtype=torch.uint8)
    assert len(energies.probe_images(quadratic, images, p, small.ebm.train.sampler, generator)) == 10


def test_chains_of_large_images_run_in_parts(
    small: params.Params, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = small.ebm.matching.model_copy(update={"images": 5, "chains": 8, "chain_steps": 8})
    images = torch.randint(256, (150, 1, 4, 4), generator=generator, dtype=torch.uint8)
    monkeypatch.setattr("lowenergy.data.images.IN_MEMORY", 4 * 3 * 16 * 4)  # three images at a time
    seen: list[int] = []

    def energy(x: Tensor) -> Tensor:
        seen.append(len(x))
        return quadratic(x)

    quiet = small.ebm.train.sampler.model_copy(update={"noise": 0.0})
    probes = energies.probe_images(energy, images, p, quiet, generator)
    assert max(seen) == 3 and len(seen) == 8 * 3
    start, *states = probes[10:].split(8)
    assert [len(state) for state in (start, *states)] == [8] * 5
    *_, end = energies.langevin_chain(quadratic, start, 8, quiet, generator)
    torch.testing.assert_close(end, states[-1])
    samples = energies.sample(energy, (1, 4, 4), 7, steps=2, constants=quiet, generator=generator)
    assert len(samples) == 7 and max(seen) == 3


def test_the_networks_own_chains_descend_and_restart(matching: EnergyMatching, generator: Generator) -> None:
    constants = Sampler(step_size=0.1, noise=0.0, gradient_clamp=100.0)
    p = matching.model_copy(update={"chain_steps": 50, "student_chains": 200})
    own = OwnChains(p, constants, (1, 2, 2), generator)
    at_rest = []
    for _ in range(100):
        gradients = energy_gradient(quadratic, torch.cat([torch.ones(5, 1, 2, 2), own.images]))[1]
        with torch.no_grad():
            before = own.images
            own.step(gradients)
            assert own.images is before  # only looked at
        own.step(gradients)
        at_rest.append(float((own.images - 0.25).abs().amax((1, 2, 3)).lt(0.05).float().mean()))
    assert at_rest[0] < 0.1 and 0.5 < sum(at_rest[50:]) / 50 < 0.95  # some are always on their way
    kept = {name: value.clone() for name, value in own.state_dict().items()}
    again = OwnChains(p, constants, (1, 2, 2), generator)
    again.load_state_dict(kept)
    assert torch.equal(again.images, own.images)


def test_probes_are_real_noisy_and_chains(small: params.Params, generator: Generator) -> None:
    p = small.ebm.matching
    images = torch.randint(256, (150, 1, 4, 4), generator=generator, dtype=torch.uint8)
    probes = energies.probe_images(quadratic, images, p, small.ebm.train.sampler, generator)
    assert len(probes) == 2 * p.images + 5 * p.chains
    assert probes.abs().max() <= 1
    known = {tuple(image.flatten().tolist()) for image in data.to_float(images)}
    assert all(tuple(probe.flatten().tolist()) in known for probe in probes[: p.images])
