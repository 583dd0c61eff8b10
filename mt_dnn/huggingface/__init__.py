"""`AdversarialTrainer`: the methods in transformers' Trainer.

`trainer.py` holds the two public classes, `trainer_checks.py` what they refuse. The other files are their parts:
recorded forwards, seeds of the noise, weights of the loss, unlabeled rows, the log. Whatever needs no Trainer belongs
into `mt_dnn/perturbation`. Users import from `mt_dnn.hf_trainer`.
"""
