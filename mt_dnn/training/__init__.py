"""One training run: objective, optimizer, epochs, stop signals, failures, log and telemetry.

Not here: flags (`configuration/`), batches (`data/`), files that a run can resume from (`checkpoints/`), the search for
the noise (`perturbation/`), other people's training loops (`huggingface/`).
"""
