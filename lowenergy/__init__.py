"""lowenergy: compress energy-based models and image classifiers, and measure what it cost.

>>> import lowenergy
>>> network = lowenergy.load("models/classifier/pq.safetensors")   # a ready torch.nn.Module
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowenergy.runtimes.loading import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # On demand: a stage that never loads a model must not depend on (or wait for) the code that does.
    if name == "load":
        from lowenergy.runtimes.loading import load

        return load
    raise AttributeError(f"module 'lowenergy' has no attribute {name!r}")
