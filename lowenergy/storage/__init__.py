"""How a model is stored: the encodings of its tensors, their file, and layers that stay coded in memory."""

from lowenergy.storage.artifact import Model, bytes_by_part, dense, read, save, sha256, stored_bytes, to_bytes, weights
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
    "bytes_by_part",
    "coded_weights",
    "dense",
    "read",
    "save",
    "sha256",
    "stored_bytes",
    "to_bytes",
    "weights",
]
