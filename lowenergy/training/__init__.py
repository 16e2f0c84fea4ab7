"""Training: a run and its checkpoints, the loop, matching a teacher."""

from lowenergy.training.loop import DivergedError, Logs, Stateful, fit
from lowenergy.training.matching import Objective, finetune, hold_zeros, mean_loss
from lowenergy.training.run import Run, disband, finished, keep, kept

__all__ = [
    "DivergedError",
    "Logs",
    "Objective",
    "Run",
    "Stateful",
    "disband",
    "finetune",
    "finished",
    "fit",
    "hold_zeros",
    "keep",
    "kept",
    "mean_loss",
]
