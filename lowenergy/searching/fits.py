"""Whether a trial fits a device, before it is trained: what its network and its encoding take, with any weights."""

from collections.abc import Mapping
from typing import Any

from lowenergy import params
from lowenergy.base.errors import UserError


def too_large(values: Mapping[str, Any], name: str, *, max_flash: int | None, max_ram: int | None) -> str:
    """Why a branch cannot fit; '' if it may. Channels that pruning will remove cannot be foreseen: such a one may.

    Args:
        values: of params.yaml, with the trial's entries.
    """
    from lowenergy.runtimes.c import forecast

    p = params.check(values)
    links = [p.branches[link] for link in p.chain(name)[1:]]
    if any(getattr(link.params, "kind", None) == "structured" for link in links):
        return ""
    student = next((link.params.student for link in reversed(links) if hasattr(link.params, "student")), None)
    spec, kind = forecast.described(p, p.target_of(name), student)
    try:
        found = forecast.forecast(forecast.untrained(spec, kind, _coding(links)), ram=max_ram)
    except UserError as error:
        return str(error)
    if max_flash is not None and found.flash > max_flash:
        return f"{found.flash:,} bytes of flash, at most {max_flash:,} are wanted"
    return ""


def _coding(links: list[params.Branch]) -> Any:
    """How weights are stored, as far as a chain of the methods that come with the package says."""
    from lowenergy.runtimes.c.forecast import Coding

    last = links[-1]
    if last.by == "quantize":
        return Coding(bits=last.params.weight_bits)
    if last.by == "pq":
        return Coding(codewords=last.params.codewords, length=last.params.block_conv)
    pruned = [link.params for link in links if link.by == "prune" and link.params.amount_of == "weights"]
    return Coding(sparse=pruned[-1].amount) if pruned else Coding()
