"""The public import of the trainers and mixins, which are defined in `mt_dnn/huggingface/`."""

from mt_dnn.huggingface.sentence_trainer import SentenceAdversarialMixin
from mt_dnn.huggingface.trainer import AdversarialMixin, AdversarialTrainer

__all__ = ["AdversarialMixin", "AdversarialTrainer", "SentenceAdversarialMixin"]
