"""Distillation: a small network learns to do what the teacher does (Hinton et al. 2015)."""

from lowenergy import models, training
from lowenergy.artifact import Model, dense
from lowenergy.params import Distill
from lowenergy.training import Objective, Run


def compress(network: models.Network, target: str, objective: Objective, p: Distill, run: Run) -> Model:
    """Train the student of the params, with the teacher's head and outputs, towards `objective`."""
    teacher = network.spec
    spec = models.Spec(
        name=p.student.name,
        width=p.student.width,
        stem=p.student.stem,
        activation=p.student.activation,
        norm=p.student.norm,
        channels=teacher.channels,
        image_size=teacher.image_size,
        outputs=teacher.outputs,
        head=teacher.head,
    )
    student = models.build(spec, seed=run.seed)
    training.finetune(student, objective, p.train, run)
    return dense(student, target)
