"""The networks of the zoo: each is one backbone for classifiers, EBMs and JEMs alike."""

import torch
from torch import Tensor, nn

from lowenergy.networks import zoo
from lowenergy.networks.network import Network
from lowenergy.networks.spec import Spec


class Backbone(Network):
    """features: images -> (batch, features), which FID uses in the scorer; fc: features -> logits.

    Some networks (zoo/unet.py) also have a term that all logits share, (batch, 1): it says more about the energy than
    about the class.
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
            with torch.autocast(x.device.type, enabled=False):  # bfloat16 rounds energies of hundreds to whole numbers
                logits = self.fc(features.float())
        else:  # an exported graph would put the lines above into a subgraph, where no quantizer looks
            logits = self.fc(features)
        return logits if shared is None else logits + shared


def _apart(features: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return the features, and the term that all logits share if there is one."""
    return features if isinstance(features, tuple) else (features, None)
