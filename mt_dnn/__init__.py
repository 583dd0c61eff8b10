"""Adversarial fine-tuning of language models: SMART, SiFT and related methods, in MT-DNN's layout.

At the top are the modules that users of MT-DNN import: `batcher`, `inference`, `loss`, `matcher`, `model`. Each folder
is one concern: `perturbation/` the methods, `huggingface/` transformers' Trainer, `training/`, `data/`, `checkpoints/`
and so on. The wheel has `perturbation/`, `huggingface/` and `hf_trainer.py` only; they may not import other folders.
"""

__version__ = "0.1.0"
