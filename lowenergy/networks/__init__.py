"""Networks: a `Spec` says which, the zoo or an import path builds it; what compression may ask of one."""

from lowenergy.networks.foreign import Foreign, NetworkError, check_trust
from lowenergy.networks.layers import (
    coded_layers,
    features_and_logits,
    fold_batchnorm,
    left_out,
    macs,
    output_layer,
    refresh_batchnorm,
    settle_norms,
    traced,
    training_format,
)
from lowenergy.networks.network import AnyNetwork, Network, build, build_with, of_params
from lowenergy.networks.spec import Spec, spec_of

__all__ = [
    "AnyNetwork",
    "Foreign",
    "Network",
    "NetworkError",
    "Spec",
    "build",
    "build_with",
    "check_trust",
    "coded_layers",
    "features_and_logits",
    "fold_batchnorm",
    "left_out",
    "macs",
    "of_params",
    "output_layer",
    "refresh_batchnorm",
    "settle_norms",
    "spec_of",
    "traced",
    "training_format",
]
