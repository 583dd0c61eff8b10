"""Trained models as transformers' classifiers, with a model card, in a folder or on the Hub.

What belongs here: what writes a trained model for others. What does not: reading such a folder (`mt_dnn/prediction/`),
and checkpoints, which training goes on from (`mt_dnn/checkpoints/`).
"""
