"""One training run: objective, optimizer, epochs, stop signals, failures.

Not here: flags (`configuration/`), batches (`data/`), files that a run can resume from (`checkpoints/`), what is
reported (`reporting/`), the search for the noise (`perturbation/`), other people's training loops (`huggingface/`).
"""
