"""Does a compressed model still answer, or does it guess?"""

import math

import torch
from torch import Tensor, nn

from lowenergy.base.errors import UserError
from lowenergy.base.intervals import wilson
from lowenergy.data import Split, at_a_time, spaced, to_float
from lowenergy.energies import HEADS, auroc_of, energy_gradient, energy_of, transformed
from lowenergy.networks import spec_of
from lowenergy.training.run import Run

IMAGES = 300  # of the validation split: they tell accuracy, or an AUROC, to 3 %
SURE = 2.0  # standard errors
RESULT, GUESSES = "result", "answers like chance"
POSSIBLE_WARNING = f"{RESULT}: {GUESSES}"


def check(
    result: nn.Module, source: nn.Module, validation: Split, run: Run, *, accepted: bool, accept: str = ""
) -> None:
    """Refuse a result that answers like chance where its source did not.

    A classifier guesses if its accuracy cannot be told from the share of the largest class. An energy guesses if it
    tells real images from others (noise, turned ones, small ones) no better than a coin, or has no gradient to follow.

    Args:
        accepted: only warn, and go on.
        accept: the setting that accepts it, for the message; by default the one in params.yaml.
    Raises:
        UserError: the result answers like chance and this is not accepted, or its outputs are not finite, which nobody
            can accept.
    """
    spec = spec_of(source)
    some = validation.take(spaced(len(validation), IMAGES))
    images = to_float(some.images.cpu())
    kinds = {"real": images}
    if spec.head is not None:
        kinds |= transformed(images, torch.Generator().manual_seed(run.seed))
    of_result, of_source = ({kind: _outputs(of, part) for kind, part in kinds.items()} for of in (result, source))
    if not all(part.isfinite().all() for part in of_result.values()):
        raise UserError(f"{run.name}: the outputs of the result are not finite; nothing is written")
    problems = []
    if spec.head in (None, "logsumexp"):  # with this head, an energy's logits are those of classes
        problems.append(_guesses(of_result["real"], of_source["real"], some.labels.cpu()))
    if spec.head is not None:
        head = HEADS[spec.head]
        energies = ({kind: head(part) for kind, part in each.items()} for each in (of_result, of_source))
        problems.append(_tells_nothing(*energies))
        problems.append(_is_flat(result, source, images[:16]))
    said = "; ".join(problem for problem in problems if problem)
    if not said:
        return
    if not accepted:
        raise UserError(
            f"{run.name}: the result {GUESSES}: {said}. Nothing is written: compress less or train longer, "
            f"or go on with {accept or f'branches.{run.name}.accept_chance: true'}"
        )
    run.warn(RESULT, GUESSES, f"{said}; which is accepted")


def _outputs(network: nn.Module, images: Tensor) -> Tensor:
    device = next(network.parameters()).device
    with torch.no_grad():
        return torch.cat([network(part.to(device)).float().cpu() for part in images.split(at_a_time(images, 250))])


def _guesses(result: Tensor, source: Tensor, labels: Tensor) -> str | None:
    n = len(labels)
    chance = int(labels.bincount().max()) / n
    reached, wanted = (wilson(int((logits.argmax(1) == labels).sum()), n, SURE) for logits in (result, source))
    # The result is better than chance, or the source cannot be told from chance, or from the result.
    if reached.low > chance or wanted.low <= max(chance, reached.high):
        return None
    return (
        f"{reached.value:.1%} of {n} validation images right, of which {chance:.1%} are of one class; "
        f"the source {wanted.value:.1%}"
    )


def _tells_nothing(result: dict[str, Tensor], source: dict[str, Tensor]) -> str | None:
    n = len(source["real"])
    error = SURE * math.sqrt((2 * n + 1) / (12 * n * n))  # of an AUROC of 0.5, n against n (Mann & Whitney 1947)
    told = {kind: auroc_of(source["real"], source[kind]) for kind in source if kind != "real"}
    told = {kind: value for kind, value in told.items() if value > 0.5 + error}
    if not told:
        return None
    wanted = sum(told.values()) / len(told)
    auroc = sum(auroc_of(result["real"], result[kind]) for kind in told) / len(told)
    if auroc > 0.5 + error or auroc > wanted - error:
        return None
    return f"its energy tells real images from {', '.join(told)} with an AUROC of {auroc:.2f}; the source {wanted:.2f}"


def _is_flat(result: nn.Module, source: nn.Module, images: Tensor) -> str | None:
    head = spec_of(source).head
    assert head is not None
    (_, slope), (_, wanted) = (
        energy_gradient(energy_of(of, head), images.to(next(of.parameters()).device)) for of in (result, source)
    )
    return "its energy has no gradient" if wanted.any() and not slope.any() else None
