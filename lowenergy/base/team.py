"""Processes that share each batch of one training, on several GPUs or cores: data parallelism without a wrapper.

Every process draws the whole batch and all of its random numbers, so that these do not depend on the number of
processes. It runs the network on its share of the rows, and receives the results of the others. All of them compute
the loss of the whole batch, each with the gradient of its own rows; these gradients add up to that of the batch.
Nothing is averaged over shares: a mean over some of the rows, a batch norm or a second derivative is what one process
would compute, except for rounding.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lowenergy.base.errors import UserError

TINY = 1e-12  # takes the place of a variance's eps where none is wanted


class TeamError(UserError):
    """Another process of the team has ended; its own message says why."""


@dataclass(frozen=True)
class Team:
    """This process's place among those that share each batch."""

    rank: int = 0
    size: int = 1

    def own_rows(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch that all processes have, divided as evenly as possible.

        If there are fewer rows than processes, they are not divided: when nothing is being trained, each process
        handles all of them.

        Raises:
            UserError: there are fewer rows than processes during training.
        """
        if len(batch) < self.size:
            if torch.is_grad_enabled():
                raise UserError(
                    f"a batch of {len(batch)} for {self.size} processes; give a larger batch_size, or "
                    f"LOWENERGY_PROCESSES={len(batch)}"
                )
            return batch
        start, end = (len(batch) * rank // self.size for rank in (self.rank, self.rank + 1))
        return batch[start:end]

    def gather(self, part: Tensor, count: int) -> Tensor:
        """All `count` rows of a batch's results, from this process's share `part`; only that share has a gradient.

        Raises:
            TeamError: another process has ended. The methods below raise it, too.
        """
        if self.size == 1 or count < self.size:
            return part
        longest = -(-count // self.size)
        padded = F.pad(part.detach(), [0, 0] * (part.ndim - 1) + [0, longest - len(part)]).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with _others():
            distributed.all_gather(parts, padded)
        ends = [count * rank // self.size for rank in range(self.size + 1)]
        rows = [parts[rank][: ends[rank + 1] - ends[rank]] for rank in range(self.size)]
        rows[self.rank] = part
        return torch.cat(rows)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of the weights from the rows of all processes."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        together = torch.cat([gradient.flatten() for gradient in gradients])
        with _others():
            distributed.all_reduce(together)
        for gradient, total in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view(gradient.shape))

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Give these tensors the values of the first process, everywhere."""
        if self.size > 1:
            with _others():
                for tensor in tensors:
                    distributed.broadcast(tensor.detach(), 0)  # else autograd forgets its hooks

    @contextmanager
    def norms(self) -> Iterator[None]:
        """Within the block, let every batch norm in training, in any module, use the whole batch's statistics."""
        if self.size == 1:
            yield
        else:
            with _Norms():
                yield


ALONE = Team()


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # from the backend, when a connection is closed
        raise TeamError(
            f"another process of this stage has ended, see its message ({str(error).splitlines()[0][:80]}); "
            "run again to go on from the last checkpoint"
        ) from None


class _Norms(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.batch_norm and (kwargs.get("training") or (len(args) > 5 and args[5])):
            return _batch_norm(*args, **kwargs)
        return function(*args, **kwargs)


def _batch_norm(
    images: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """functional.batch_norm over the rows of all processes (Ioffe & Szegedy 2015), differentiable just as often."""
    channels = images.shape[1]
    total, squares = _Sums.apply(images)
    own = torch.cat([total, squares, total.new_tensor([images.numel() / channels])])
    sums = _Total.apply(own)
    mean, square, count = sums[:channels] / sums[-1], sums[channels:-1] / sums[-1], sums[-1].detach()
    variance = square - mean.square()
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * count / (count - 1), momentum)
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    return _affine(images, scale, -mean * scale if bias is None else bias - mean * scale)


def _affine(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale * images + shift, per channel: a batch norm's own kernel takes a third of the time of two operations."""
    return torch.batch_norm(
        images, scale, shift, torch.zeros_like(scale), torch.ones_like(scale), False, 0.0, 0.0, False
    )


class _Total(torch.autograd.Function):
    """Sum a tensor over all processes; its gradient is summed over them in the same way."""

    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        total = own.clone()
        with _others():
            distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Any:
        return _Total.apply(*gradients)


class _Sums(torch.autograd.Function):
    """Sum a batch and its squares per channel.

    The sums come from a batch norm, which takes a sixth of the time of reductions over rows and pixels.
    """

    @staticmethod
    def forward(context: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        context.save_for_backward(images)
        kind = torch.promote_types(images.dtype, torch.float32)
        one = torch.ones(images.shape[1], device=images.device, dtype=kind)
        _, mean, inverse = torch.native_batch_norm(images, one, 0 * one, None, None, True, 0.0, TINY)
        count = images.numel() / images.shape[1]
        return count * mean, count * (inverse**-2 - TINY + mean.square())

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (images,) = context.saved_tensors
        of_sum, of_square = gradients
        return _affine(images, 2 * of_square, of_sum)
