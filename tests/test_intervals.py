"""How sure figures are: intervals cover the truth as often as they say, and say nothing that is not so."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score
from torch import Tensor

from lowenergy import networks
from lowenergy.scoring import answers, generation
from lowenergy.scoring.intervals import Interval, around, bootstrap, mcnemar, standard_errors, wilson

SHARES = st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)


# -- Wilson -----------------------------------------------------------------------------------------------------------


@given(SHARES)
def test_wilson_is_scipys(share: tuple[int, int]) -> None:
    hits, n = share
    wanted = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    found = wilson(hits, n)
    assert found.low == pytest.approx(wanted.low, abs=1e-9) and found.high == pytest.approx(wanted.high, abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.value == hits / n


@given(SHARES)
def test_wilson_is_symmetric_and_shrinks(share: tuple[int, int]) -> None:
    hits, n = share
    one, other, more = wilson(hits, n), wilson(n - hits, n), wilson(4 * hits, 4 * n)
    assert one.low == pytest.approx(1 - other.high, abs=1e-12)
    assert more.high - more.low < one.high - one.low


def test_wilson_covers_the_truth() -> None:
    for n, truth in ((143, 0.97), (1000, 0.5), (50, 0.9)):
        covered = sum(stats.binom.pmf(hits, n, truth) for hits in range(n + 1) if truth in wilson(hits, n))
        assert 0.92 < covered < 0.98


@pytest.mark.parametrize(("hits", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_no_share_has_no_interval(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson(hits, n)


def test_standard_errors_are_the_tables() -> None:
    assert standard_errors() == pytest.approx(1.959964, abs=1e-6)
    assert standard_errors(0.99) == pytest.approx(2.575829, abs=1e-6)


# -- McNemar ----------------------------------------------------------------------------------------------------------


@given(ANSWERS)
def test_mcnemar_is_the_exact_test(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (torch.tensor(part) for part in zip(*pairs, strict=True))
    found = mcnemar(first, second)
    b, c = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    assert found.p_value == pytest.approx(stats.binomtest(b, b + c).pvalue if b + c else 1.0, rel=1e-9)
    assert float(found.difference) == pytest.approx((b - c) / len(pairs))
    assert -1 <= found.difference.low <= found.difference.value <= found.difference.high <= 1
    turned = mcnemar(second, first)
    assert turned.difference.low == pytest.approx(-found.difference.high) and turned.p_value == found.p_value


def test_paired_answers_tell_more_than_accuracies_do() -> None:
    """Ten images lost of a thousand, none won: each accuracy's interval holds the other, and the loss is sure."""
    teacher = torch.arange(1000) < 960
    small = torch.arange(1000) < 950
    assert 0.95 in wilson(960, 1000) and 0.96 in wilson(950, 1000)
    found = mcnemar(small, teacher)
    assert found.told_apart and found.difference.high < 0 and found.p_value == pytest.approx(2**-9)
    assert not mcnemar(teacher, teacher).told_apart and mcnemar(teacher, teacher).p_value == 1


def test_the_interval_of_a_difference_covers_the_truth() -> None:
    """Agresti & Min: 20 % of images told apart, a true difference of 4 points, 150 images."""
    generator, covered = torch.Generator().manual_seed(0), 0
    for _ in range(1000):
        draw = torch.rand(150, generator=generator)
        first, second = draw < 0.72, (draw < 0.60) | ((draw > 0.9) & (draw < 0.98))
        covered += 0.04 in mcnemar(first, second).difference
    assert 0.93 < covered / 1000 < 0.975


def test_many_images_are_no_overflow() -> None:
    answers_ = torch.arange(200_000) % 2 == 0
    assert mcnemar(answers_, ~answers_).p_value == pytest.approx(1.0)
    with pytest.raises(ValueError, match="two of the same images"):
        mcnemar(answers_, answers_[1:])


# -- bootstrap --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31 - 1), st.integers(20, 200))
@settings(max_examples=20, deadline=None)
def test_a_bootstrap_of_a_mean_is_its_standard_error(seed: int, n: int) -> None:
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = bootstrap(lambda index: float(values[index].mean()), n, seed=seed, resamples=400)
    wanted = 2 * 1.96 * float(values.std()) / math.sqrt(n)
    assert found.low <= found.value <= found.high and found.value == pytest.approx(float(values.mean()))
    assert 0.75 * wanted < found.high - found.low < 1.25 * wanted
    assert found == bootstrap(lambda index: float(values[index].mean()), n, seed=seed, resamples=400)
    assert found != bootstrap(lambda index: float(values[index].mean()), n, seed=seed + 1, resamples=400)


def test_a_bootstrap_of_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap(lambda index: 0.0, 1, seed=0)
    with pytest.raises(ValueError, match="not finite"):
        bootstrap(lambda index: math.nan, 5, seed=0)
    assert bootstrap(lambda index: 3.0, 5, seed=0) == Interval(3.0, 3.0, 3.0)


def test_intervals_of_fid_cover_other_samples() -> None:
    """FID of other images of the same kind is within, about as often as it says; far ones are not."""
    generator = torch.Generator().manual_seed(0)

    def moments(count: int, shift: float = 0.0) -> tuple[Tensor, generation.Moments]:
        features = torch.randn(count, 8, generator=generator) + shift
        return features, generation._moments(features)

    distance = generation.distance_from(moments(20_000)[1])
    others = [distance(moments(300, 0.3)[1]) for _ in range(60)]
    inside = 0
    for seed in range(20):
        features, whole = moments(300, 0.3)
        found = bootstrap(
            lambda index, features=features: distance(generation._moments(features[index])),
            300,
            seed=seed,
            value=distance(whole),
        )
        inside += sum(others) / 60 in found
    assert inside >= 16
    assert distance(moments(300, 0.6)[1]) not in found


def test_no_interval_reaches_below_what_a_figure_can_be() -> None:
    assert around(0.1, [0.0, 0.1, 0.4, 0.9], 0.0).low == 0 > around(0.1, [0.0, 0.1, 0.4, 0.9]).low
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    moments = generation._moments(features)
    value, *again = generation.distances(moments, features, seed=0).tolist()
    assert around(value, again, 0.0).low == 0 < around(value, again, 0.0).high


def test_figures_with_intervals_are_those_without() -> None:
    spec = networks.Spec("cnn", 4, "3x3", "swish", "none", 1, 8, 10)
    scorer = networks.build(spec, seed=0).eval()
    images = torch.randint(256, (1500, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    real = generation.moments_of(scorer, images.flip(2))
    found = generation.measure_surely(scorer, real, images, seed=0)
    moments, logits = generation._looked_at(scorer, images)
    assert found.fid.value == generation.frechet_distance(real, moments)
    assert found.inception_score.value == pytest.approx(
        generation.inception_score(logits, torch.Generator().manual_seed(0)), rel=1e-12
    )
    for figure in (found.fid, found.inception_score):
        assert figure.low < figure.value < figure.high


# -- answers ----------------------------------------------------------------------------------------------------------


def test_the_class_that_lost_most_is_named() -> None:
    labels = torch.tensor([0] * 10 + [1] * 4 + [2] * 6)
    teacher, small = torch.eye(3)[labels], torch.eye(3)[labels]
    small[10:12] = torch.eye(3)[0]  # half of class 1
    small[:3] = torch.eye(3)[1]  # more images, but a smaller share of class 0
    found = answers.lost_most(small, teacher, labels)
    assert (found.label, found.own, found.teacher, found.images) == (1, 0.5, 1.0, 4)
    assert answers.agreement(small, teacher) == accuracy_score(teacher.argmax(1), small.argmax(1)) == 0.75


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_calibration_is_torchmetrics(seed: int) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (300,), generator=generator)
    wanted = multiclass_calibration_error(logits, labels, num_classes=5, n_bins=answers.BINS)
    assert answers.calibration_error(logits, labels) == pytest.approx(float(wanted), abs=1e-6)
