"""Turn a stored model into something that runs: networks, int8 graphs, ONNX, samplers. Import them where used."""

import logging

import torch  # noqa: F401 first: it sets up the loggers

# At import, torchao 0.18 registers its enums by a call that torch 2.15 warns about, and users cannot do anything about.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
