"""Adversarial fine-tuning of language models: SMART, SiFT and their family, in MT-DNN's layout."""

__version__ = "0.1.0"
