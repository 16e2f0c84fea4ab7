"""The zoo's networks by name: one module per family, each with `features(spec)`: images -> features (batch, n)."""

from importlib import import_module

from torch import nn

from lowenergy.base.errors import UserError
from lowenergy.networks.spec import Spec


def features(spec: Spec) -> nn.Sequential:
    """Return the freshly initialised layers below the last one.

    Raises:
        UserError: there is no such network.
    """
    family = "resnet" if spec.name.startswith("resnet") else spec.name
    unknown = UserError(f"{spec.name} is no network of the zoo; docs/architectures.md lists them")
    try:
        made = import_module(f"lowenergy.networks.zoo.{family}")
    except ModuleNotFoundError:
        raise unknown from None
    if not hasattr(made, "features") or spec.name not in getattr(made, "RESNETS", (spec.name,)):
        raise unknown
    layers: nn.Sequential = made.features(spec)
    return layers
