"""Training: a run and its checkpoints, the loop, matching a teacher."""

from lowenergy.training.finetuning import POSSIBLE_WARNINGS, Objective, finetune, hold_zeros, mean_loss
from lowenergy.training.loop import DivergedError, Logs, Stateful, fit
from lowenergy.training.run import Run, disband, finished, keep, kept, running
from lowenergy.training.silence import silent_answers, silent_cross_entropy

__all__ = [
    "POSSIBLE_WARNINGS",
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
    "running",
    "silent_answers",
    "silent_cross_entropy",
]
