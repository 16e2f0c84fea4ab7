"""Method `distill`: a small network learns to do what the teacher does."""

from typing import Literal

from lowenergy.base.later import later
from lowenergy.params import Architecture, Finetune, Method, StudentRetrain


class Params(Method):
    student: Architecture = Architecture(name="cnn", width=8, stem="3x3", activation="swish", norm="none")
    """the student's network; its head is the teacher's"""
    init: Literal["random", "teacher"] = "random"
    """the student's first weights; teacher: the teacher's leading channels wherever both have a layer"""
    train: Finetune = Finetune(epochs=36, batch_size=64, lr=0.01)
    """matching the teacher"""
    retrain: StudentRetrain = StudentRetrain(epochs=18, lr=0.3, contrastive_from=0.0, precision="32-true")
    """then training by the target's own loss, which gives an EBM its own negatives"""


compress = later("lowenergy.compression.distill.distilling:compress")
