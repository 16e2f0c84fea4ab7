"""Section `scorer`: the classifier that only measures."""

from typing import ClassVar

from pydantic import model_validator

from lowenergy.base.precision import Precision
from lowenergy.params.architecture import Architecture
from lowenergy.params.entries import trains_what_is_random
from lowenergy.params.section import Count, Positive, Section, SomeEpochs, Times


class ScorerTraining(Section):
    epochs: SomeEpochs
    """passes over the training images; 0 with architecture.weights only"""
    batch_size: Count
    """images per step"""
    lr: Positive
    """peak of the one-cycle learning rate (SGD with Nesterov momentum 0.9)"""
    crop_padding: Times
    """random crops after reflecting this many pixels; 0 for none"""
    flip: bool
    """mirror half of the images"""
    precision: Precision
    """of the forward and backward passes"""

    # The Inception Score wants sharp probabilities; features should be of whole images.
    label_smoothing: ClassVar[float] = 0.0
    image_scales: ClassVar[list[float]] = [1.0]


class Scorer(Section):
    architecture: Architecture
    """the classifier whose features FID and IS look through"""
    train: ScorerTraining
    """its training"""

    _epochs = model_validator(mode="after")(trains_what_is_random)
