"""Attacks on a trained model, and how it stands them."""
