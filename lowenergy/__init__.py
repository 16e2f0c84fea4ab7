"""lowenergy: compress energy-based models and image classifiers, and measure what it cost.

small = lowenergy.compress(network, "pq", images=train_images, labels=train_labels, budget_bytes=700_000)
small.network(images)                               # a torch.nn.Module
small.save("small.safetensors")                     # the bytes that count
print(small.card(test_images, test_labels))         # accuracy with its interval, bytes, MACs, MicroNet score

network = lowenergy.load("small.safetensors")
images = lowenergy.sample("energy.safetensors", n=64)
lowenergy.export("small.safetensors", "model.onnx")
figures = lowenergy.fid(images, scorer="pretrained/mnist-scorer.safetensors")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lowenergy.base.errors import UserError

if TYPE_CHECKING:
    from lowenergy.calls.making import Made, compress, save, train
    from lowenergy.calls.measuring import Card, evaluate, fid
    from lowenergy.calls.using import export, load, sample

__all__ = ["Card", "Made", "UserError", "compress", "evaluate", "export", "fid", "load", "sample", "save", "train"]

_HOMES = {
    **dict.fromkeys(("Made", "compress", "save", "train"), "making"),
    **dict.fromkeys(("Card", "evaluate", "fid"), "measuring"),
    **dict.fromkeys(("export", "load", "sample"), "using"),
}


def __getattr__(name: str) -> Any:
    # On demand: a stage that uses no call must not depend on the code of the calls, nor wait for it.
    if name in _HOMES:
        return getattr(import_module(f"lowenergy.calls.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lowenergy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
