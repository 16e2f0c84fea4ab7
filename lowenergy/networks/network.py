"""One backbone each for classifiers, EBMs and JEMs, built from a small `Spec`.

    >>> spec = Spec("cnn", width=16, stem="3x3", activation="swish", norm="none", channels=1, image_size=8, outputs=10)
    >>> build(spec, seed=0)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])

A network maps images in [-1, 1], (batch, channels, size, size), to logits, (batch, outputs). What the logits mean is
the target's business: class scores, or an energy through one of the heads of lowenergy/energies.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lowenergy.networks import zoo
from lowenergy.networks.spec import Spec


class Network(nn.Module):
    """features: images -> (batch, features), what FID looks at in the scorer; fc: features -> logits."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.features = zoo.features(spec)
        with torch.no_grad():
            self.features.eval()
            width = self.features(torch.zeros(1, *spec.input_shape)).shape[1]
            self.features.train()
        self.fc = nn.Linear(width, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        if not torch.is_autocast_enabled(x.device.type):
            return self.fc(features)
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 energies of hundreds are whole numbers
            return self.fc(features.float())


def build(spec: Spec, *, seed: int) -> Network:
    """A freshly initialised network; the same seed gives the same weights and leaves the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(spec)


def build_with(spec: Spec, state: Mapping[str, Tensor]) -> Network:
    """The network of `spec` holding these weights, in evaluation mode.

    A structurally pruned network has fewer channels than its spec says, so the tensors' shapes decide.

    Raises:
        ValueError: tensors are missing, unknown, or do not fit together.
    """
    network = build(spec, seed=0)
    for name, module in network.named_modules():
        weight = state.get(f"{name}.weight")
        if weight is None:
            continue
        if isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels = weight.shape[0], weight.shape[1]
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = len(weight)
        for key in ("weight", "bias", "running_mean", "running_var"):
            old, new = getattr(module, key, None), state.get(f"{name}.{key}")
            if old is None or new is None or old.shape == new.shape:
                continue
            empty = torch.empty_like(new)
            setattr(module, key, nn.Parameter(empty) if isinstance(old, nn.Parameter) else empty)
    try:
        network.load_state_dict(dict(state))
        network.eval()(torch.zeros(1, *spec.input_shape))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the tensors do not fit architecture {spec.name}: {error}") from None
    return network
