"""The methods in transformers' Trainer, and trained models as transformers' classifiers, with card and Hub."""
