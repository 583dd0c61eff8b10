"""Adversarial regularizers for fine-tuning: the methods, the search that they share, and the interface to other loops.

`methods/` has one class per method; the files here are what the methods use. Nothing here may import anything but torch
and this folder, so that the folder can be copied into another repository: no files, flags, task definitions, trainers.
"""

from .base import AdversarialPerturbation
from .method import Regularization
from .methods import (
    PERTURBATIONS,
    AdversarialTraining,
    AlumPerturbation,
    FreeLbPerturbation,
    MtdnnReleasePerturbation,
    NeftunePerturbation,
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
    "NeftunePerturbation",
    "R3fPerturbation",
    "RandomPerturbation",
    "Regularization",
    "SiftPerturbation",
    "SmartPerturbation",
    "VatPerturbation",
]
