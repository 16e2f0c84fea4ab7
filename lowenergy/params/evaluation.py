"""Section `evaluate`: how a model is measured, as a classifier or as an energy."""

from typing import Annotated

from pydantic import Field

from lowenergy.params.section import Count, Positive, Section


class ClassifierEvaluation(Section):
    batch_size: Count = 500
    """images scored at once; does not change the figures"""


class EnergyEvaluation(Section):
    samples: Annotated[int, Field(ge=100, le=10**7)] = 1000
    """images drawn for FID and Inception Score"""
    chain_steps: Count = 75
    """Langevin steps from uniform noise to a sample"""
    step_factor: Positive = 1.0
    """how much longer those steps are than in training; half as many, twice as long, draw as well"""
