"""Networks: a `Spec` says which one, the zoo or an import path builds it, and compression may ask it these things."""

from lowenergy.networks import backward as backward  # fixes torch
from lowenergy.networks.backbone import Backbone
from lowenergy.networks.building import build, build_with, stored_state
from lowenergy.networks.copies import duplicate
from lowenergy.networks.distance import distance
from lowenergy.networks.foreign import Foreign, check_trust, sharing
from lowenergy.networks.graphs import MOST, SAME, check_same, sensitivity, traced
from lowenergy.networks.importing import NetworkError
from lowenergy.networks.intake import TRIED, batchnorm_warning, of_params, settled
from lowenergy.networks.layers import (
    Layer,
    coded_layers,
    features_and_logits,
    first_names,
    flop_counter,
    left_out,
    macs,
    memory_format,
    output_layer,
    own_tensors,
    training_format,
    unfused,
)
from lowenergy.networks.network import Network
from lowenergy.networks.norms import batchnorms, fold_batchnorm, refresh_batchnorm, settle_norms
from lowenergy.networks.plain import plain_weights
from lowenergy.networks.products import fed, padded, product, watched
from lowenergy.networks.spec import Given, Spec, spec_of

__all__ = [
    "MOST",
    "SAME",
    "TRIED",
    "Backbone",
    "Foreign",
    "Given",
    "Layer",
    "Network",
    "NetworkError",
    "Spec",
    "batchnorm_warning",
    "batchnorms",
    "build",
    "build_with",
    "check_same",
    "check_trust",
    "coded_layers",
    "distance",
    "duplicate",
    "features_and_logits",
    "fed",
    "first_names",
    "flop_counter",
    "fold_batchnorm",
    "left_out",
    "macs",
    "memory_format",
    "of_params",
    "output_layer",
    "own_tensors",
    "padded",
    "plain_weights",
    "product",
    "refresh_batchnorm",
    "sensitivity",
    "settle_norms",
    "settled",
    "sharing",
    "spec_of",
    "stored_state",
    "traced",
    "training_format",
    "unfused",
    "watched",
]
