"""Copy networks, whatever they keep from their last forward pass."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)


def duplicate(network: M) -> M:
    """Return a deep copy, hooks included.

    torch refuses to copy tensors that have been computed with a gradient. Networks keep such tensors, in attributes,
    dicts or objects of their own: features of the last images, attention biases looked up once. The copy has their
    values.
    """
    with _WithoutGraph():
        return copy.deepcopy(network)


class _WithoutGraph(TorchFunctionMode):
    """Within this mode, copy.deepcopy detaches tensors that were computed with a gradient."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()  # copy.deepcopy itself notes the copy, for whatever else holds the tensor
        return func(*args, **(kwargs or {}))
