"""The networks of the zoo: one backbone each for classifiers, EBMs and JEMs."""

import torch
from torch import Tensor, nn

from lowenergy.networks import zoo
from lowenergy.networks.network import Network
from lowenergy.networks.spec import Spec


class Backbone(Network):
    """features: images -> (batch, features), what FID looks at in the scorer; fc: features -> logits.

    Some features come with a term that all logits share (zoo/unet.py), (batch, 1): an energy more than a class.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.features = zoo.features(spec)
        with torch.no_grad():
            self.features.eval()
            width = _apart(self.features(torch.zeros(1, *spec.input_shape)))[0].shape[1]
            self.features.train()
        self.fc = nn.Linear(width, spec.outputs)
        self.layers = tuple(name for name, m in self.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
        self.last = "fc"
        self.unbearable, self.bears_channels_last = {}, True

    def forward(self, x: Tensor) -> Tensor:
        features, shared = _apart(self.features(self.normalised(x)))
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):  # in bfloat16 energies of hundreds are whole numbers
                logits = self.fc(features.float())
        else:  # an exported graph would keep a part of its own for the lines above, out of a quantizer's sight
            logits = self.fc(features)
        return logits if shared is None else logits + shared


def _apart(features: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Features, and the term that all logits share, where there is one."""
    return features if isinstance(features, tuple) else (features, None)
