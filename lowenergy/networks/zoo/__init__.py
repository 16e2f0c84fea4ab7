"""The networks by name: a module per family, each with `features(spec)`, images -> (batch, width)."""

from importlib import import_module

from torch import nn

from lowenergy.networks.spec import Spec


def features(spec: Spec) -> nn.Sequential:
    """The freshly initialised layers below the last one."""
    family = "resnet" if spec.name.startswith("resnet") else spec.name
    made: nn.Sequential = import_module(f"lowenergy.networks.zoo.{family}").features(spec)
    return made
