"""The methods in transformers' Trainer: `AdversarialTrainer` and its parts."""
