"""Official MNIST, from a torchvision root."""

from lowenergy.base.params import Data
from lowenergy.data.images import Split
from lowenergy.data.torchvision import read_torchvision


def read(p: Data) -> tuple[Split, Split, list[str]]:
    return read_torchvision("mnist", p.root)
