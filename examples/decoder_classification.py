"""Sequence classification with a decoder: plain fine-tuning, and SMART with relative noise.

Needs torch, transformers, accelerate, tokenizers and this library. Run it in the repository:

python -m examples.decoder_classification --data reviews.tsv

The first run trains a small decoder on the texts (small_decoder.py). A fifth of the texts is for testing. The table has
the accuracy on it: of clean texts, with noise in a random direction, and under attack. The noise is a share of each
word vector's length.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from examples.small_decoder import LABELS, Row, attack, load_decoder, noisy, random_noise, read_arguments, spread
from mt_dnn.hf_trainer import AdversarialTrainer
from mt_dnn.perturbation import SmartPerturbation


def with_smart(**options: Any) -> Trainer:
    """The same Trainer with SMART."""
    return AdversarialTrainer(**options, perturbation=SmartPerturbation.with_defaults())


METHODS: dict[str, Callable[..., Trainer]] = {"plain": Trainer, "SMART": with_smart}


def main(argv: list[str] | None = None) -> None:
    arguments, files = read_arguments(argv, __doc__, rows=2000, tests=400, epochs=2)
    rows = [row for file in files for row in file]
    random.Random(0).shuffle(rows)  # mixes the files
    train, test = ([row for row in rows if row.is_test == part] for part in (False, True))
    tokenizer = load_decoder(arguments.decoder, [row.text for row in train], arguments.updates)
    train, test = train[: arguments.rows], test[: arguments.tests]
    print(f"{len(train)} rows to train on, {len(test)} to test on", flush=True)

    lines = [f"| method | clean | random noise of {arguments.radius} | attack of {arguments.radius} | s/update |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for name, kind in METHODS.items():
        found = [run(kind, arguments, tokenizer, train, test, seed) for seed in range(arguments.seeds)]
        *scores, seconds = zip(*found, strict=True)
        lines.append(" | ".join([f"| {name}", *(spread(values, 1) for values in scores), f"{spread(seconds, 2)} |"]))
        print(lines[-1], flush=True)
    print("\naccuracy in percent\n\n" + "\n".join(lines))


def run(
    kind: Callable[..., Trainer],
    arguments: argparse.Namespace,
    tokenizer: Any,
    train: list[Row],
    test: list[Row],
    seed: int,
) -> tuple[float, ...]:
    """Accuracy in percent on clean, noisy and attacked texts, and the seconds of an update."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        arguments.decoder, num_labels=len(LABELS), trust_remote_code=False
    )
    model.config.problem_type = "single_label_classification"
    data = [{**tokenizer(row.text), "labels": LABELS.index(row.label)} for row in train]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=arguments.epochs, learning_rate=5e-4, per_device_train_batch_size=32, seed=seed,
            lr_scheduler_type="linear", save_strategy="no", report_to=[], disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(), logging_strategy="no",
        )  # fmt: skip
        trainer = kind(model=model, args=settings, train_dataset=data, data_collator=DataCollatorWithPadding(tokenizer))
        trainer.remove_callback(PrinterCallback)
        seconds = trainer.train().metrics["train_runtime"] / trainer.state.max_steps
    return (*accuracies(model.cpu().eval(), tokenizer, test, arguments.radius), seconds)


def accuracies(model: Any, tokenizer: Any, test: list[Row], radius: float) -> list[float]:
    """Accuracy in percent on clean texts, with random noise and under attack."""
    right = torch.zeros(3)
    for first in range(0, len(test), 50):
        rows = test[first : first + 50]
        batch = dict(tokenizer([row.text for row in rows], padding=True, return_tensors="pt"))
        labels = torch.tensor([LABELS.index(row.label) for row in rows])

        def loss(output: Any, labels: Tensor = labels) -> Tensor:
            return F.cross_entropy(output.logits, labels, reduction="sum")

        noises = [torch.zeros(()), random_noise(model, batch, radius), attack(model, batch, radius, loss)]
        with torch.no_grad():
            right += torch.tensor([(noisy(model, batch, x).logits.argmax(-1) == labels).sum() for x in noises])
    return (100 * right / len(test)).tolist()


if __name__ == "__main__":
    main()
