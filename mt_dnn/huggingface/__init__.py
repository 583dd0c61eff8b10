"""`AdversarialTrainer`: the methods in transformers' Trainer, and in sentence-transformers'.

`trainer.py` and `sentence_trainer.py` hold the public classes, `trainer_checks.py` and `sentence_checks.py` what they
refuse. The other files are their parts: recorded forwards, texts of several forwards in one batch, seeds of the noise,
weights of the loss, unlabeled rows, the log. Whatever needs no Trainer belongs into `mt_dnn/perturbation`. Users import
from `mt_dnn.hf_trainer`.
"""
