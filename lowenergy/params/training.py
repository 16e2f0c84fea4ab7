"""How a compressed network is trained: sections `finetune`, `retrain` and a student's `train`."""

from lowenergy.base.precision import Precision
from lowenergy.params.section import Count, Fraction, Positive, Section, SomeEpochs


class Finetune(Section):
    epochs: SomeEpochs
    """passes over the matching images; 0 leaves the compressed weights alone"""
    batch_size: Count
    """images per step"""
    lr: Positive
    """peak learning rate (Adam, one cycle)"""


class Retrain(Section):
    """Training by the target's own loss with the constants of its section `train`, without looking at the teacher. For
    energies, chains join in at once."""

    epochs: SomeEpochs
    """passes over the training images; 0 for none"""
    lr: Positive
    """learning rate, as a share of the target's train.lr; it falls to 0"""


class StudentRetrain(Retrain):
    """The same for a network that may know little yet."""

    contrastive_from: Fraction
    """of energies: share of these epochs before chains join in"""
    precision: Precision
    """of the forward and backward passes"""
