"""Trained models as transformers' classifiers, with a model card, in a folder or on the Hub."""
