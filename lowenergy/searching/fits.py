"""Check whether a trial fits a device before it is trained: what its network and encoding take, with any weights."""

from collections.abc import Mapping
from typing import Any

from lowenergy import params
from lowenergy.base.errors import UserError


def too_large(values: Mapping[str, Any], name: str, *, max_flash: int | None, max_ram: int | None) -> str:
    """Why a branch cannot fit; '' if it may, or if its size cannot be foreseen.

    Args:
        values: those of params.yaml, with the trial's entries.
    """
    from lowenergy.runtimes.c import forecast

    p = params.check(values)
    links = [p.branches[link] for link in p.chain(name)[1:]]
    if any(link.params.stored() is None for link in links):
        return ""
    student = next((link.params.student for link in reversed(links) if hasattr(link.params, "student")), None)
    spec, kind = forecast.described(p, p.target_of(name), student)
    coding = forecast.Coding(**links[-1].params.stored())
    try:
        predicted = forecast.forecast(forecast.untrained(spec, kind, coding), ram=max_ram)
    except UserError as error:
        return str(error)
    if max_flash is not None and predicted.flash > max_flash:
        return f"{predicted.flash:,} bytes of flash, at most {max_flash:,} are wanted"
    return ""
