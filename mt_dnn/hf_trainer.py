"""The public import of `AdversarialTrainer`, which is defined in `mt_dnn/huggingface/trainer.py`."""

from mt_dnn.huggingface.trainer import AdversarialMixin, AdversarialTrainer

__all__ = ["AdversarialMixin", "AdversarialTrainer"]
