"""Isolate a call: the caller never sees what it sets in torch."""

import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout

import numpy as np
import torch

from lowenergy.base import device as devices
from lowenergy.base.errors import UserError, explained, missing

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_one_at_a_time = threading.RLock()  # what is set and restored belongs to the whole process

Device = torch.device | str | None


@contextmanager
def apart(device: Device = None) -> Iterator[torch.device]:
    """Set torch up as a stage has it, on this device; afterwards, restore everything.

    This concerns the default dtype and device, the precision of products, gradient and autocast modes, deterministic
    algorithms, threads, random numbers, and the one environment variable that a stage sets. Whatever is printed goes to
    stderr, where progress belongs: stdout belongs to the caller's script.

    Args:
        device: None for a GPU if there is one.
    Raises:
        UserError: there is no such device, a package is not installed that one of the extras brings, or a file cannot
            be read or written for a reason that the user can fix. Errors raised within lose their mention of
            params.yaml, since a call has not read it.
    """
    with _one_at_a_time, ExitStack() as stack:
        place = _checked(device)
        stack.enter_context(_put_back())
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.cuda.is_available():
            stack.enter_context(torch.autocast("cuda", enabled=False))
        if torch.get_default_device().type != "cpu":  # the device of new tensors; setting it slows all calls
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(devices.on(place))
        stack.enter_context(redirect_stdout(sys.stderr))
        try:
            yield place
        except UserError as error:
            if "params.yaml: " not in str(error):
                raise
            raise type(error)(str(error).replace("params.yaml: ", "")) from None
        except ModuleNotFoundError as error:
            raise missing(error) from None
        except OSError as error:
            raise UserError(explained(error)) from error


def _checked(device: Device) -> torch.device:
    try:
        place = devices.fastest() if device is None else torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:  # torch does not know the name, or has no such device
        raise UserError(f"device={device!r}: {str(error).splitlines()[0]}; give cpu or cuda") from None
    if place.type not in ("cpu", "cuda"):
        raise UserError(f"device={device!r}: nothing was tried there; give cpu or cuda")
    return place


@contextmanager
def _put_back() -> Iterator[None]:
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    products = torch.get_float32_matmul_precision()
    deterministic = _deterministic()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    variable, of_python, of_numpy = os.environ.get(CUBLAS), random.getstate(), np.random.get_state()
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(products)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if _deterministic() != deterministic:  # only then: setting it imports much of torch
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
        if variable is None:
            os.environ.pop(CUBLAS, None)
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
