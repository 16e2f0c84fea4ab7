"""Method `prune`: drop single weights and store the rest sparse, or remove whole channels for good."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lowenergy.base.later import later
from lowenergy.params import Finetune, Method, Retrain, Times


class Params(Method):
    kind: Literal["unstructured", "structured", "2of4"] = "unstructured"
    """unstructured: single weights, stored sparse; structured: whole channels, removed for good; 2of4: two of each four
    consecutive inputs of a weight, the pattern that GPUs have kernels for"""
    scope: Literal["global", "conv"] = "global"
    """global: all layers; conv: convolutions only"""
    importance: Literal["l1", "l2", "group", "taylor"] = "group"
    """what goes first: channels whose filter has the smallest L1 or L2 norm; group: the L2 norm of all weights that go
    with the channel; single weights by their magnitude, whichever of these is named; taylor: by how much the
    target's own loss changes"""
    allocation: Literal["ranked", "uniform", "sensitivity"] = "ranked"
    """who gives. ranked: all layers' weights or channels compete; uniform: every layer the same share; sensitivity:
    layers give what costs each the same in matching loss"""
    amount: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """fraction to remove"""
    amount_of: Literal["weights", "macs"] = "weights"
    """what the amount is a fraction of: weights (of kind structured: channels), or multiply-accumulates (structured
    only)"""
    rounds: Annotated[int, Field(ge=1, le=1000)] = 1
    """1: one shot; more: prune a little, finetune, prune more, by equal factors"""
    scan_images: Times = 200
    """inputs on which each layer's sensitivity is scanned and plotted; 0 for no scan"""
    finetune: Finetune = Finetune(epochs=5, batch_size=64, lr=0.002)
    """matching the target after pruning, in all rounds together; zeros stay zeros"""
    retrain: Retrain = Retrain(epochs=15, lr=1.0)
    """then training by the target's own loss; zeros stay zeros"""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.allocation == "sensitivity" and not self.scan_images:
            raise ValueError("prune.allocation = sensitivity needs a scan: give prune.scan_images, e.g. 500")
        if self.kind == "2of4" and (self.amount != 0.5 or self.rounds > 1 or self.allocation != "uniform"):
            raise ValueError(
                "prune.kind = 2of4 halves every layer at once: give prune.amount 0.5, rounds 1, allocation uniform"
            )
        if self.amount_of == "macs" and (self.kind != "structured" or self.allocation != "ranked"):
            raise ValueError("prune.amount_of = macs needs kind structured and allocation ranked")
        return self

    def stored(self) -> dict[str, Any] | None:
        return None if self.kind == "structured" else {"sparse": self.amount}


compress = later("lowenergy.compression.prune.pruning:compress")
