"""How a model is stored: the encodings of its tensors, the file they make, layers that stay coded in memory."""

from lowenergy.storage.artifact import Model, dense, read, save, sha256, shares, to_bytes, weights
from lowenergy.storage.coded import CodedWeight, attach, coded_weights
from lowenergy.storage.encodings import Coded, Constant, Dense, Encoding, Int8, Sparse

__all__ = [
    "Coded",
    "CodedWeight",
    "Constant",
    "Dense",
    "Encoding",
    "Int8",
    "Model",
    "Sparse",
    "attach",
    "coded_weights",
    "dense",
    "read",
    "save",
    "sha256",
    "shares",
    "to_bytes",
    "weights",
]
