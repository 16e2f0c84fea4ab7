"""Kind `classifier`: cross-entropy on labels; compressed ones also match softened answers. The scorer is one, too."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from lowenergy.base.later import later
from lowenergy.base.precision import Precision
from lowenergy.params import (
    Architecture,
    ClassifierEvaluation,
    Fraction,
    Kind,
    NotNegative,
    Positive,
    Section,
    is_import_path,
)
from lowenergy.params.section import Count, SomeEpochs, Times


class ClassifierTraining(Section):
    epochs: SomeEpochs = 20
    """passes over the training images; 0 with architecture.weights only"""
    batch_size: Count = 64
    """images per step"""
    lr: Positive = 0.1
    """peak of the one-cycle learning rate (SGD with Nesterov momentum 0.9)"""
    label_smoothing: Fraction = 0.1
    """label smoothing of the cross-entropy"""
    crop_padding: Times = 1
    """random crops after reflecting this many pixels; 0 for none"""
    flip: bool = False
    """mirror half of the images"""
    image_scales: list[Annotated[float, Field(gt=0, le=1)]] = Field(default=[1.0], min_length=1)
    """progressive resizing: the epochs fall into as many parts, each on images shrunk to this share of their side;
    [1.0] for full size throughout"""
    precision: Precision = "32-true"
    """of the forward and backward passes, in matching as well"""


class LabelMatching(Section):
    """How a compressed classifier is pulled to its teacher (Hinton et al. 2015)."""

    temperature: Positive = 2.0
    """of teacher's and student's softmax"""
    label_weight: Annotated[float, Field(ge=0, le=1)] = 0.1
    """share of the cross-entropy with the labels; the rest is the divergence from the teacher"""
    feature_weight: NotNegative = 0.0
    """weight of the error in which images of a batch look alike to the last layer (Tung & Mori 2019)"""


def _shrinks_only_what_pools(section: Any) -> Any:
    name = section.architecture.name
    if section.train.image_scales != [1.0] and not (name.startswith("resnet") or is_import_path(name)):
        raise ValueError(
            f"train.image_scales = {section.train.image_scales} needs a resnet; a {section.architecture.name} ends "
            "in a layer of fixed size: give [1.0]"
        )
    return section


class Params(Kind):
    architecture: Architecture
    """the teacher's network"""
    train: ClassifierTraining = ClassifierTraining()
    """the teacher's training"""
    matching: LabelMatching = LabelMatching()
    """the loss that pulls compressed classifiers to their teacher"""
    evaluate: ClassifierEvaluation = ClassifierEvaluation()
    """how the teacher and its branches are measured"""

    _sizes = model_validator(mode="after")(_shrinks_only_what_pools)


train = later("lowenergy.targets.classifier.training:train")
objective = later("lowenergy.targets.classifier.training:objective")
