"""Section `energies`, which kinds ebm and jem share: the Langevin step, training, matching, measuring."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from lowenergy.base.precision import Precision
from lowenergy.params.entries import Kind
from lowenergy.params.evaluation import EnergyEvaluation
from lowenergy.params.section import Count, Fraction, NotNegative, Positive, Section, SomeEpochs, Times


class Sampler(Section):
    """x <- clamp(x - step_size * clamp(grad E, +-gradient_clamp) + noise * N(0, 1), [-1, 1])."""

    step_size: Positive = 0.1
    """factor of the energy's input gradient in one Langevin step"""
    noise: NotNegative = 0.015
    """standard deviation of the noise in one step; images span [-1, 1]"""
    gradient_clamp: Positive = 5.0
    """each component of the gradient is clamped to +- this"""


class EnergyTraining(Section):
    """Flow regression and persistent contrastive divergence, each with its weight.

    The loss is flow_weight * flow + contrastive_weight * contrastive; the second term joins in at contrastive_from.
    Weights 0 and 1 give persistent contrastive divergence (Tieleman 2008; Du & Mordatch 2019). Both terms together give
    Energy Matching (Balcerak et al. 2025): the flow shapes the way from noise to the data, chains shape the data's
    vicinity.
    """

    epochs: SomeEpochs = 75
    """passes over the training images; 0 with architecture.weights only"""
    batch_size: Count = 64
    """real images, and as many chains, per step"""
    lr: Positive = 0.004
    """Adam's learning rate"""
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.96
    """factor of the learning rate after each epoch"""
    beta1: Fraction = 0.9
    """Adam's first decay rate"""
    gradient_norm: Positive | None = 1.0
    """the weights' gradient is clipped to this norm; null for none"""
    weight_average: Fraction = 0.999
    """decay of the moving average of the weights, the result; 0 for none"""
    flow_weight: NotNegative = 1.0
    """weight of the flow regression; 0 for none"""
    flow_rest: Fraction = 0.0
    """last share of the way, where the flow slows to rest; may be left out"""
    contrastive_weight: NotNegative = 0.1
    """weight of the contrastive loss; 0 for none: no chains"""
    contrastive_from: Fraction = 0.2
    """share of the epochs trained on the flow alone; then chains join in"""
    regularization: NotNegative = 0.0
    """weight of the mean squared energy, which keeps energies near 0"""
    data_noise: NotNegative = 0.0
    """standard deviation of noise added to real images"""
    crop_padding: Times = 0
    """random crops of the real images after reflecting this many pixels; may be left out"""
    flip: bool = False
    """mirror half of the real images; may be left out"""
    buffer_size: Count = 2048
    """chains kept in the replay buffer"""
    fresh_fraction: Annotated[float, Field(ge=0, le=1)] = 0.067
    """chains restarted from uniform noise"""
    chain_steps: Count = 5
    """Langevin steps between two updates of the weights"""
    burn_in: Times = 15
    """a chain counts as a sample after so many steps from noise"""
    precision: Precision = "32-true"
    """of the forward and backward passes"""
    sampler: Sampler = Sampler()
    """the Langevin step: in training, and written into the model file for later"""

    @property
    def life(self) -> int:
        """The mean number of Langevin steps in a chain's life, in which this training turns noise into samples."""
        return round(self.chain_steps / self.fresh_fraction) if self.fresh_fraction else self.chain_steps

    @property
    def recorded_sampler(self) -> dict[str, float]:
        """What a model's file says about sampling from it: the constants of a step and the number of steps."""
        return {**self.sampler.model_dump(), "chain_steps": self.life}

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        if not (self.flow_weight or self.contrastive_weight):
            raise ValueError("flow_weight and contrastive_weight are both 0; give one of them a weight")
        if self.contrastive_from and not self.flow_weight:
            raise ValueError(f"contrastive_from = {self.contrastive_from} needs a flow_weight to train on until then")
        if self.burn_in * self.fresh_fraction >= self.chain_steps:
            raise ValueError(
                f"burn_in = {self.burn_in} is no less than a chain's mean life of chain_steps / fresh_fraction = "
                f"{self.chain_steps / self.fresh_fraction:.0f} steps"
            )
        return self


class EnergyMatching(Section):
    """Where a compressed energy must agree with its teacher (on data, around it, where sampling goes), and in what."""

    images: Count = 1400
    """training images to match at, and as many with noise"""
    chains: Times = 600
    """chains of the teacher, started at uniform noise, to match along"""
    chain_steps: Count = 30
    """their length; their start and four evenly spaced states are kept"""
    student_chains: Times = 0
    """chains of the compressed network itself, each a step further whenever it is matched; 0 for none"""
    energy_weight: NotNegative = 1.0
    """weight of the energies' squared error (the earlier study's loss)"""
    score_weight: NotNegative = 1.0
    """weight of the input gradients' squared error: of what sampling follows"""

    @model_validator(mode="after")
    def _matches_something(self) -> Self:
        if not (self.energy_weight or self.score_weight):
            raise ValueError("energy_weight and score_weight are both 0; give one of them a weight")
        return self


class EnergyKind(Kind):
    """What ebm and jem have in common, wherever its values stand in the file."""

    over = "energies"

    train: EnergyTraining = EnergyTraining()
    """the teacher's training"""
    matching: EnergyMatching = EnergyMatching()
    """the images and the loss that pull compressed ones to their teacher"""
    evaluate: EnergyEvaluation = EnergyEvaluation()
    """how the teacher and its branches are measured"""
