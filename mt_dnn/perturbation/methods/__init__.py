"""The methods, one file each: what the ascent climbs and what is added to the loss.

All of them use the one search in `base.py` and differ in what they override. Equations: docs/methods.md. Code that more
than one method needs belongs in the folder above.
"""

from ..base import AdversarialPerturbation
from .adversarial_training import AdversarialTraining
from .alum import AlumPerturbation
from .freelb import FreeLbPerturbation
from .mtdnn_release import MtdnnReleasePerturbation
from .neftune import NeftunePerturbation
from .r3f import R3fPerturbation
from .random_noise import RandomPerturbation
from .sift import SiftPerturbation
from .smart import SmartPerturbation
from .vat import VatPerturbation

# By the method's name, the value of `--adv_opt`. SiFT is `smart` at the level `post_ln`.
PERTURBATIONS: dict[str, type[AdversarialPerturbation]] = {
    method.name: method
    for method in (
        RandomPerturbation,
        AdversarialTraining,
        VatPerturbation,
        SmartPerturbation,
        AlumPerturbation,
        FreeLbPerturbation,
        R3fPerturbation,
        NeftunePerturbation,
    )
}

__all__ = [
    "PERTURBATIONS",
    "AdversarialTraining",
    "AlumPerturbation",
    "FreeLbPerturbation",
    "MtdnnReleasePerturbation",
    "NeftunePerturbation",
    "R3fPerturbation",
    "RandomPerturbation",
    "SiftPerturbation",
    "SmartPerturbation",
    "VatPerturbation",
]
