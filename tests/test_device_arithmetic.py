"""Where C's arithmetic is not torch's: conditions, integers, small numbers, masks; and what is refused instead."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_device import COMPARED, HEADER, agrees, foreign, sizes_untold  # noqa: F401 fixture
from test_device_int8 import images_for, is_the_reference
from torch import Tensor, nn
from torch.nn import functional as F

from lowenergy.base.errors import UserError
from lowenergy.runtimes import c
from lowenergy.runtimes.c import directory, reference
from lowenergy.storage import Model


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.LazyLinear(4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.function(self.conv(x)).flatten(1))


def with_function(function: Callable[[Tensor], Tensor], target: str = "classifier") -> Model:
    torch.manual_seed(0)
    return foreign(Between(function), target, 8)


INTEGERS: dict[str, Callable[[Tensor], Tensor]] = {
    "conditions added": lambda x: x * ((x > 0) + (x > -0.2) + (x < 0.1)),
    "conditions divided": lambda x: x * ((x > 0) / ((x > -9) | (x < 0))),
    "counts divided": lambda x: x * (((x > 0) * 1 + (x > 0.2) * 1) / ((x < 0.3) * 1 + 1)),
    "counts multiplied": lambda x: x * ((x > 0) * 3) ** 2 * (1 - (x > 0.1) * 1),
    "conditions chosen": lambda x: x * (torch.where(x > 0, x > 0.1, x > -0.2) / 2),
    "counts chosen": lambda x: x * (torch.where(x > 0, (x > 0.1) * 3, (x > -0.2) * 2) / 2),
    "counts compared": lambda x: x * (((x > 0) * 1) > x) * torch.maximum((x > 0) * 1, x),
    "conditions summed": lambda x: x * (x > 0).sum(1, keepdim=True) / (x > 0).amax(1, keepdim=True).add(1),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_conditions_and_counts_are_torchs(name: str, tmp_path: Path) -> None:
    assert agrees(with_function(INTEGERS[name], "ebm"), tmp_path / "c") == COMPARED["ebm"]


def _written_as(kind: torch.dtype) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        written = torch.zeros(x.shape, dtype=kind)
        written[:] = x * 5
        return x * written

    return function


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "bitwise_not of integers": lambda x: x * ~((x > 0) * 1),
    "bitwise_or of integers": lambda x: x * (((x > 0) * 2) | ((x > 0.1) * 1)),
    "_to_copy in torch.float16": lambda x: x.half().float(),
    "_to_copy to torch.int64": lambda x: x * (4 * x).long(),
    "add in torch.uint8": lambda x: x * (torch.tensor(255, dtype=torch.uint8) + (x > 0)),
    "copy from torch.float32 to torch.int64": _written_as(torch.int64),
    "copy from torch.float32 to torch.float16": _written_as(torch.float16),
    "sum from torch.float32 to torch.float16": lambda x: x * x.sum(1, keepdim=True, dtype=torch.float16).float(),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_c_would_compute_otherwise_is_refused(words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^no C form of {words} \(after layer body.conv\); export it as ONNX$"):
        c.export(with_function(REFUSED[words]), HEADER, tmp_path / "c")


def of_small_numbers(x: Tensor) -> Tensor:
    small = 1e-6 * x
    y = torch.log1p(small.abs()) + torch.expm1(small) + F.elu(small) + F.celu(small, 0.3) + torch.erf(small)
    return 1e6 * y + 1e7 * (F.softplus(x - 18) + F.logsigmoid(x + 18)) + torch.expm1(x) + torch.erf(3 * x)


def test_small_numbers_lose_no_digits(tmp_path: Path) -> None:
    assert agrees(with_function(of_small_numbers, "ebm"), tmp_path / "c") == COMPARED["ebm"]


def test_functions_are_exact_to_a_few_units_of_the_last_place() -> None:
    sizes = 10 ** np.linspace(-30, 1.9, 10001)
    both = np.concatenate([sizes, -sizes])
    of: dict[str, tuple[Callable[[Tensor], Tensor], np.ndarray]] = {
        "expm1_of": (torch.expm1, both),
        "log1p_of": (torch.log1p, np.concatenate([sizes, -sizes[sizes < 0.99]])),
        "error_function": (torch.erf, both),
    }
    for name, (function, numbers) in of.items():
        x = numbers.astype(np.float32)
        wanted = function(torch.from_numpy(x).double()).numpy()
        found = reference.FUNCTIONS[name](x)
        kept = np.abs(wanted) < 1e38  # exponential goes no further
        np.testing.assert_allclose(found[kept], wanted[kept], rtol=3e-7)


def test_functions_have_the_references_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = with_function(lambda x: F.elu(x) + F.softplus(4 * x) + torch.erf(2 * x) + torch.log1p(x * x), "jem")
    made = is_the_reference(model, tmp_path / "c", steps=True)
    code = (tmp_path / "c/model.c").read_text()
    assert all(f"static float {name}(" in code for name in ("expm1_of", "log1p_of", "error_function"))
    image = images_for(model)[0]
    with torch.no_grad():
        np.testing.assert_allclose(made.logits(image), model.build()(image[None])[0], rtol=1e-5, atol=1e-5)


class Products(nn.Module):
    """torch.addmm with biases of every shape, times numbers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(6, 4)
        self.weight = nn.Parameter(torch.randn(8, 6))
        shapes = ((6,), (64, 6), (64, 1), (1,), (6,))
        self.biases = nn.ParameterList([torch.randn(shape) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.conv(x).movedim(1, 3).flatten(0, 2)
        layer, matrix, column, number, scaled = self.biases
        one = [torch.addmm(bias, pixels, self.weight) for bias in (layer, number)]
        one += [torch.addmm(bias.repeat(len(x), 1), pixels, self.weight) for bias in (matrix, column)]
        one += [torch.addmm(scaled, pixels, self.weight, beta=beta, alpha=2.0) for beta in (0.5, 0)]
        return self.fc(sum(x.tanh() * n for n, x in enumerate(one, 1)).unflatten(0, (len(x), -1)).mean(1))


def test_products_with_sums_of_every_shape(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert agrees(foreign(Products(), "ebm", 8), tmp_path / "c") == COMPARED["ebm"]


class Masks(nn.Module):
    """Attention that sees a part: by a flag, by conditions, of which some leave nothing, by infinities kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(8, 4)
        self.register_buffer("seen", torch.rand(16, 16).gt(0.4) & torch.arange(16).ne(3)[:, None])
        self.register_buffer("mask", torch.full((16, 16), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).mT
        causal = F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True)
        seen = F.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=self.seen)
        kept = (tokens @ tokens.mT + self.mask).softmax(-1) @ tokens  # type: ignore[operator]
        return self.fc(torch.cat([causal, seen.tanh(), kept], 1).mean(1))


def test_masks_of_attention(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert agrees(foreign(Masks(), "ebm", 8), tmp_path / "c") == COMPARED["ebm"]


def test_constants_that_are_no_number_are_refused(tmp_path: Path) -> None:
    model = with_function(lambda x: torch.where(x > 9, torch.tensor([torch.nan, 1] * 4), x))
    words = r"^no C form of where with a constant that is no number \(after layer body.conv\); export it as ONNX$"
    with pytest.raises(UserError, match=words):
        c.export(model, HEADER, tmp_path / "c")


def test_what_a_compiler_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "COMPILERS", {"gcc": (["gcc", "-DMODEL_LANES=many"], "size")})
    with pytest.raises(UserError, match=r"^gcc does not compile this model's C: .*many"):
        c.export(with_function(torch.relu), HEADER, tmp_path / "c")
    assert not list(tmp_path.iterdir())
