"""Networks: a `Spec` says which, the zoo builds it; what compression may ask of one."""

from lowenergy.networks.layers import coded_layers, fold_batchnorm, macs, training_format
from lowenergy.networks.network import Network, build, build_with
from lowenergy.networks.spec import Spec, spec_of

__all__ = [
    "Network",
    "Spec",
    "build",
    "build_with",
    "coded_layers",
    "fold_batchnorm",
    "macs",
    "spec_of",
    "training_format",
]
