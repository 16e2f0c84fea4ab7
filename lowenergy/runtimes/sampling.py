"""Sampling by the fastest way at hand: the energy's gradient graph in onnxruntime where that pays, autograd where not.

Which one is decided by the amount of work, never by a clock, and onnxruntime computes a fixed number of images at a
time on one thread each: a model's samples are the same bytes every time, on however many threads.
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

# Multiply-accumulates, of both directions and all images and steps, from which the graph's export, which takes some
# four seconds, is made up for: one core does ten to twenty billion a second, and onnxruntime saves a fifth to a third
# of the time; of an int8 model, whose rounding torch simulates slowly, half.
WORTH_EXPORTING = 1e12
WORTH_EXPORTING_INT8 = 5e11
CHUNK = 32  # images to a thread at a time: enough for the kernels, few enough for the cache


def constants_of(header: Mapping[str, Any], path: str | Path, step_size: float | None = None) -> Sampler:
    """The Langevin step's constants as the model's file says, but for the step size, if one is given.

    Raises:
        FileError: it says nothing.
        UserError: the step size is no number above 0.
    """
    found = header.get("provenance", {}).get("sampler")
    if found is None:
        raise FileError(f"{path}: does not say how to sample from it; make it again by its stage")
    constants = {key: value for key, value in found.items() if key != "chain_steps"}
    if step_size is not None:
        if not 0 < step_size < math.inf:
            raise UserError(f"step size {step_size}: give a number above 0")
        constants["step_size"] = step_size
    return completed(Sampler, "sampler", constants)


def fastest(model: Model, network: nn.Module, *, images: int) -> Energy:
    """The energy of a stored EBM or JEM, for chains that ask for its gradient at so many images in all.

    Args:
        network: what loading.network_of made of the model, on the device that is to be used.
    Raises:
        FileError: the model has no energy.
    """
    on_cpu = next(network.parameters()).device.type == "cpu"
    enough = WORTH_EXPORTING_INT8 if model.activations else WORTH_EXPORTING
    # The gradient's way is about twice as long as the energy's.
    if on_cpu and model.spec.head is not None and 3 * networks.macs(network) * images >= enough:
        try:
            return in_onnxruntime(model, network)
        except (UserError, ModuleNotFoundError) as error:  # a network may have no such form; onnxruntime is an extra
            print(f"sampling by autograd: {error}", flush=True)
    return loading.energy_in(model, network)


def in_onnxruntime(model: Model, network: nn.Module) -> ExplicitEnergy:
    """The energy whose gradients onnxruntime computes; int8 models round as they do elsewhere, in both directions."""
    from lowenergy.runtimes import to_onnx  # brings torchao along

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
        parts = list(self.threads.map(self._run, images.split(CHUNK)))
        return torch.cat([logits for logits, _ in parts]), torch.cat([gradient for _, gradient in parts])

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, gradient = self.session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(logits), torch.from_numpy(gradient)
