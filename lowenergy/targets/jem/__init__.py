"""Kind `jem`: one network that is both classifier and energy (Grathwohl et al. 2020)."""

from lowenergy.base.later import later
from lowenergy.params import (
    Architecture,
    EnergyKind,
    EnergyMatching,
    EnergyTraining,
    Fraction,
    NotNegative,
    Positive,
)


class JemTraining(EnergyTraining):
    lr: Positive = 0.003
    """Adam's learning rate"""
    contrastive_weight: NotNegative = 0.05
    """weight of the contrastive loss; 0 for none: no chains"""
    contrastive_from: Fraction = 0.4
    """share of the epochs trained on the flow alone; then chains join in"""
    classification_weight: Positive = 1.0
    """weight of the labels' cross-entropy; may be left out"""
    classification_rise: Fraction = 0.0
    """share of the training in which that weight rises from 0; may be left out"""


class JemMatching(EnergyMatching):
    divergence_weight: NotNegative = 1.0
    """weight of the divergence from the teacher's class probabilities; may be left out"""


class Params(EnergyKind):
    architecture: Architecture
    """the teacher's network; its energy is -logsumexp of its logits"""
    train: JemTraining = JemTraining()
    """the teacher's training"""
    matching: JemMatching = JemMatching()
    """the images and the loss that pull compressed ones to their teacher"""


train = later("lowenergy.targets.jem.training:train")
objective = later("lowenergy.targets.jem.training:objective")
