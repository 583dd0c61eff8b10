"""Adversarial regularizers of fine-tuning: one search for a perturbation of the embeddings, one class a method.

This folder imports torch and itself alone, so that it can be copied into another repository.
"""

from .base import AdversarialPerturbation
from .method import Regularization
from .methods import (
    PERTURBATIONS,
    AdversarialTraining,
    AlumPerturbation,
    FreeLbPerturbation,
    MtdnnReleasePerturbation,
    R3fPerturbation,
    RandomPerturbation,
    SiftPerturbation,
    SmartPerturbation,
    VatPerturbation,
)
from .regularizer import ModelRegularizer

__all__ = [
    "PERTURBATIONS",
    "AdversarialPerturbation",
    "AdversarialTraining",
    "AlumPerturbation",
    "FreeLbPerturbation",
    "ModelRegularizer",
    "MtdnnReleasePerturbation",
    "R3fPerturbation",
    "RandomPerturbation",
    "Regularization",
    "SiftPerturbation",
    "SmartPerturbation",
    "VatPerturbation",
]
