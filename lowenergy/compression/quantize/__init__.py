"""Method `quantize`: integer weights per output channel, integer activations, and the training of both."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lowenergy.base.later import later
from lowenergy.params import Count, Finetune, Method, Positive, Retrain


def _with_slash(layer: str) -> str:
    if ":" in layer:
        raise ValueError(f"write {layer.replace(':', '/')}; DVC's YAML cannot read [{layer}]")
    return layer


class Params(Method):
    coded = True

    calibration_images: Count = 500
    """images whose activations set the int8 ranges"""
    weight_bits: Annotated[int, Field(ge=2, le=8)] = 8
    """of weights"""
    activation_bits: Annotated[int, Field(ge=2, le=8)] = 8
    """of what layers take in, of energies also on the way back"""
    rounding: Literal["nearest", "learned", "gptq"] = "nearest"
    """of weights; learned (AdaRound): up or down, so that each layer's output changes least; gptq: each makes up for
    errors of others; both without training only"""
    allocation: Literal["uniform", "sensitivity"] = "uniform"
    """uniform: weight_bits and activation_bits in every layer; sensitivity: 2 to 8, more where rounding costs more of
    the matching loss, so many on average over the weights, or over the operations"""
    keep_float: list[Annotated[str, AfterValidator(_with_slash)]] = Field(default=[])
    """layers that stay float32, as in `lowenergy show`; ebm/fc is the EBM's alone"""
    loss_budget: Positive | None = None
    """keep the most sensitive layers float until rounding adds no more than this to the matching loss; null for no
    budget"""
    finetune: Finetune = Finetune(epochs=0, batch_size=64, lr=0.0002)
    """training of the rounded network (QAT); 0 epochs for none (PTQ)"""
    retrain: Retrain = Retrain(epochs=0, lr=0.3)
    """then training of the rounded weights and their steps by the target's own loss, activations of 8 bits float"""

    @model_validator(mode="after")
    def _learns_once(self) -> Self:
        if self.rounding != "nearest" and (self.finetune.epochs or self.retrain.epochs):
            raise ValueError(
                f"rounding = {self.rounding} is for networks that are not trained; set finetune.epochs and "
                "retrain.epochs to 0, or rounding to nearest"
            )
        return self

    def stored(self) -> dict[str, Any]:
        return {"bits": self.weight_bits}


compress = later("lowenergy.compression.quantize.quantizing:compress")
