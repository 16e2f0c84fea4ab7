"""Official CIFAR-100, from a torchvision root."""

from lowenergy.data.torchvision import read_torchvision

read = read_torchvision
