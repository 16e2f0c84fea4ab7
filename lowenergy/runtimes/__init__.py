"""From a stored model to something that runs: networks, int8 graphs, ONNX, samplers. Imported where they are used."""

import logging

import torch  # noqa: F401 first: it sets up the loggers

# torchao 0.18 registers its enums by a call that torch 2.15 warns of at import: nothing that a user could mend.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
