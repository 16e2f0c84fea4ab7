"""Sample in the fastest way available: the energy's gradient graph in onnxruntime where that pays, else autograd.

The amount of work decides, never a clock, and each onnxruntime thread computes a fixed number of images at a time. So a
model's samples are the same bytes every time, with any number of threads.
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.base.files import FileError
from lowenergy.energies import Energy, ExplicitEnergy
from lowenergy.params import Sampler, completed
from lowenergy.runtimes import loading
from lowenergy.storage.artifact import Model

# Multiply-accumulates, over both directions and all images and steps, from which exporting the graph pays: the export
# takes about four seconds, one core does ten to twenty billion a second, and onnxruntime saves a fifth to a third of
# the time, or half for an int8 model, whose rounding is slow to simulate in torch.
WORTH_EXPORTING = 1e12
WORTH_EXPORTING_INT8 = 5e11
CHUNK = 32  # images per thread at a time: enough for the kernels, few enough for the cache


def constants_of(header: Mapping[str, Any], path: str | Path, step_size: float | None = None) -> Sampler:
    """The Langevin step's constants from the model's file, with `step_size` instead of the recorded one if given.

    Raises:
        FileError: the file does not record them.
        UserError: the step size is not a number above 0.
    """
    recorded = header.get("provenance", {}).get("sampler")
    if recorded is None:
        raise FileError(f"{path}: does not say how to sample from it; make it by its stage, or by compress or train")
    constants = {key: value for key, value in recorded.items() if key != "chain_steps"}
    if step_size is not None:
        if not 0 < step_size < math.inf:
            raise UserError(f"step size {step_size}: give a number above 0")
        constants["step_size"] = step_size
    return completed(Sampler, "sampler", constants)


def fastest(model: Model, network: nn.Module, *, images: int) -> Energy:
    """The energy of a stored EBM or JEM, computed in the fastest way for chains of this length.

    Args:
        network: what loading.network_of made of the model, on the device to use.
        images: at how many images the chains need the gradient in all: images times steps.
    Raises:
        FileError: the model has no energy.
    """
    on_cpu = next(network.parameters()).device.type == "cpu"
    enough = WORTH_EXPORTING_INT8 if model.activations else WORTH_EXPORTING
    # The gradient takes about twice as much work as the energy.
    if on_cpu and model.spec.head is not None and 3 * networks.macs(network) * images >= enough:
        try:
            return in_onnxruntime(model, network)
        except (UserError, ModuleNotFoundError) as error:  # not every network has an ONNX form; onnxruntime is an extra
            print(f"sampling by autograd: {error}", flush=True)
    return loading.energy_in(model, network)


def in_onnxruntime(model: Model, network: nn.Module) -> ExplicitEnergy:
    """The energy with gradients computed by onnxruntime; int8 models round as they do elsewhere, in both directions."""
    from lowenergy.runtimes import to_onnx  # imports torchao

    assert model.spec.head is not None
    return ExplicitEnergy(network, _Session(to_onnx.gradient_session(model)), model.spec.head)


class _Session:
    """A gradient graph in onnxruntime: images (n, c, h, w) -> logits (n, outputs), gradients (n, c, h, w)."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.threads = ThreadPoolExecutor(torch.get_num_threads())

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if len(images) <= CHUNK:
            return self._run(images)
        results = list(self.threads.map(self._run, images.split(CHUNK)))
        return torch.cat([logits for logits, _ in results]), torch.cat([gradient for _, gradient in results])

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, gradient = self.session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(logits), torch.from_numpy(gradient)
