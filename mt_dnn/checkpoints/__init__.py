"""Checkpoints: files in MT-DNN's structure, the networks and encoders built from them, and resuming a run.

Not here: the loop that decides when to save (`training/`), and models in transformers' format (`export/`).
"""
