"""Adversarial regularizers of fine-tuning: one search for a perturbation of the embeddings, one class a method."""

from mt_dnn.perturbation.base import AdversarialPerturbation, Regularization
from mt_dnn.perturbation.methods import (
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
from mt_dnn.perturbation.regularizer import ModelRegularizer

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
