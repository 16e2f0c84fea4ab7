"""Official CIFAR-100, from a torchvision root."""

from lowenergy.base.params import Data
from lowenergy.data.images import Split
from lowenergy.data.torchvision import read_torchvision


def read(p: Data) -> tuple[Split, Split, list[str]]:
    return read_torchvision("cifar100", p.root)
