"""Distillation: a small network learns to do what the teacher does (Hinton et al. 2015), then trains by itself."""

import math
from dataclasses import replace

import torch
from torch import nn

from lowenergy import networks, training
from lowenergy.compression.distill import Params
from lowenergy.params import is_import_path
from lowenergy.storage.artifact import Model, dense
from lowenergy.training import Objective, Run


def compress(
    network: networks.Network,
    target: str,
    objective: Objective,
    p: Params,
    run: Run,
    student: networks.Given | None = None,
) -> Model:
    """Train the student of the params, with the teacher's head and outputs: first towards `objective`, then by the
    target's own loss, because an energy that agrees with the teacher's only where that was asked has minima of its own.

    Args:
        student: the module that p.student names, with its present weights.
    """
    teacher = network.spec
    # If the outputs only make an energy, a student from elsewhere may have any number of them.
    outputs = 0 if teacher.head in ("mean", "scalar") and is_import_path(p.student.name) else teacher.outputs
    spec = networks.Spec.of(p.student, teacher.input_shape, outputs, teacher.head, teacher.normalisation, student)
    small = networks.of_params(
        p.student, spec, seed=run.seed, where=f"{run.name}.student", batch_size=p.train.batch_size
    )
    if p.init == "teacher":
        inherited = inherit(small, network)
        run.say(f"{len(inherited)} layers start from the teacher's: {', '.join(inherited)}")
    training.finetune(small, objective, p.train, run)
    if p.retrain.epochs:
        objective.retrain(small, p.retrain, run)
    if small.spec.head == "mean" and isinstance(small, networks.Backbone):
        small = merge_outputs(small)
    small = networks.settled(small, objective.inputs[: networks.TRIED].cpu(), run.name)
    return dense(small, target)


def merge_outputs(network: networks.Backbone) -> networks.Network:
    """The same energy with one output: the mean of linear outputs is itself linear."""
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    state |= {f"fc.{part}": state[f"fc.{part}"].mean(0, keepdim=True) for part in ("weight", "bias")}
    return networks.build_with(replace(network.spec, outputs=1), state)


def inherit(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Start the student's layers from the leading channels of the teacher's layers of the same name, where those are at
    least as large.

    Layers with fewer inputs get larger weights, so that activations keep their scale; BatchNorms also take over the
    statistics.

    Returns:
        The names of these layers.
    """
    theirs = dict(teacher.named_modules())
    done = []
    for name, layer in student.named_modules():
        other = theirs.get(name)
        if isinstance(layer, nn.BatchNorm2d) and isinstance(other, nn.BatchNorm2d):
            names = ["weight", "bias", "running_mean", "running_var"]
        elif isinstance(layer, nn.Conv2d | nn.Linear) and isinstance(other, nn.Conv2d | nn.Linear):
            names = ["weight", "bias"]
        else:
            continue
        pairs = [(getattr(layer, key), getattr(other, key)) for key in names if getattr(layer, key) is not None]
        if "weight" not in layer._parameters:
            continue  # it is computed before each use
        if any(old is None or not _contains(old.shape, new.shape) for new, old in pairs):
            continue
        with torch.no_grad():
            for new, old in pairs:
                new.copy_(old[tuple(slice(length) for length in new.shape)])
            if layer.weight.ndim > 1:
                layer.weight.mul_(math.sqrt(other.weight.shape[1] / layer.weight.shape[1]))
        done.append(name)
    return done


def _contains(larger: torch.Size, smaller: torch.Size) -> bool:
    """True if `larger` has at least as many channels as `smaller`, and equal kernels."""
    return (
        len(larger) == len(smaller)
        and larger[2:] == smaller[2:]
        and all(a >= b for a, b in zip(larger[:2], smaller[:2], strict=True))
    )
