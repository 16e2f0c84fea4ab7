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
    try:
        layers: nn.Sequential = import_module(f"lowenergy.networks.zoo.{family}").features(spec)
    except (ModuleNotFoundError, KeyError):
        raise UserError(f"{spec.name} is no network of the zoo; docs/architectures.md lists them") from None
    return layers
