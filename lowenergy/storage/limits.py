"""A small file must not take all memory: limits for what it decodes to, and for the network built from it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from lowenergy.base.errors import UserError

# Unless the reader allows more: what any small network takes, plus a multiple of the file's size that compression
# hardly exceeds (pq with 2 codewords of 9 weights reaches 288 before its codes are entropy-coded).
ALWAYS = 2**28  # bytes
RATIO = 256
MOST_MODULES = 20_000  # tensors included; the largest networks of torchvision and timm have four thousand


class TooLargeError(UserError):
    """A file would take more memory than it may."""


def limit_of(size: int) -> int:
    """Bytes that a file of this size may decode to, and that its network may take."""
    return ALWAYS + RATIO * size


@contextmanager
def bounded(limit: int | None, origin: str) -> Iterator[None]:
    """Let no tensor made in this context exceed `limit` bytes, and no networks built in it exceed them together.

    Constructors take their sizes from a file's header, so sizes are checked before anything is allocated.

    Args:
        limit: in bytes; None for no limit.
        origin: the file, for messages.
    Raises:
        TooLargeError: one does, even if the network's code turned that error into another.
    """
    if limit is None:
        yield
        return
    counter = _Counter(limit, origin)
    hooks = [
        register(counter.count)
        for register in (
            register_module_parameter_registration_hook,
            register_module_buffer_registration_hook,
            register_module_module_registration_hook,
        )
    ]
    try:
        with counter:
            yield
    except Exception:
        if counter.exceeded is not None:
            raise counter.exceeded from None
        raise
    finally:
        for hook in hooks:
            hook.remove()


class _Counter(TorchDispatchMode):
    """Run every operation that allocates on tensors without content first, to see how much it takes."""

    def __init__(self, limit: int, origin: str) -> None:
        super().__init__()
        self.limit, self.origin = limit, origin
        self.registered = WeakTensorKeyDictionary()
        self.bytes = self.modules = 0
        self.exceeded: TooLargeError | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if _allocates(func):
            try:
                outputs = func(*tree_map(_without_content, args), **_on_meta(func, kwargs))
            except Exception:  # no such form: sizes that depend on content are taken to stay within the inputs'
                outputs = None
            self._allow(max((_bytes(t) for t in tree_leaves(outputs) if isinstance(t, Tensor)), default=0))
        return func(*args, **kwargs)

    def count(self, _: nn.Module, __: str, part: Any) -> None:
        """Count one more parameter, buffer or module of a network."""
        self.modules += 1
        if self.modules > MOST_MODULES:
            self.exceeded = TooLargeError(
                f"{self.origin}: a network of more than {MOST_MODULES:,} modules and parameters"
            )
            raise self.exceeded
        if isinstance(part, Tensor) and not is_lazy(part) and part not in self.registered:
            self.registered[part] = None
            self.bytes += _bytes(part)
            if self.bytes > self.limit:  # or was, before some tensors were replaced
                self.bytes = sum(map(_bytes, self.registered))
            self._allow(self.bytes)

    def _allow(self, size: int) -> None:
        if size > self.limit:
            self.exceeded = too_large(self.origin, size, self.limit)
            raise self.exceeded


def too_large(origin: str, size: int, limit: int) -> TooLargeError:
    return TooLargeError(
        f"{origin}: takes {size:,} bytes of memory or more; a file of its size may take {limit:,}. If you trust it, "
        f"allow more: load(path, limit={size}) or `--limit {size}`"
    )


def _allocates(func: Any) -> bool:
    return any(returned.alias_info is None for returned in func._schema.returns)


def _without_content(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _on_meta(func: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    on_meta = {name: tree_map(_without_content, value) for name, value in kwargs.items() if name != "generator"}
    if any(argument.name == "device" for argument in func._schema.arguments):
        on_meta["device"] = torch.device("meta")
    return on_meta


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
