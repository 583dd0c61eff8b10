"""SiFT in transformers' Trainer: AdversarialTrainer in its place, with a perturbation.

python -m examples.hf_trainer
accelerate launch --num_processes 2 -m examples.hf_trainer
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from data_utils.errors import run_command_line
from examples.sentences import load, parse_args, read_sentences
from mt_dnn.hf_trainer import AdversarialTrainer
from mt_dnn.perturbation import SiftPerturbation


def accuracy(predictions: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(predictions.predictions.argmax(-1) == predictions.label_ids))}


def main(argv: list[str] | None = None) -> None:
    arguments = parse_args(__doc__, argv)
    train, test = read_sentences(arguments.data)
    trainers: dict[str, Callable[..., Trainer]] = {
        "plain": Trainer,
        "SiFT ": partial(AdversarialTrainer, perturbation=SiftPerturbation.with_defaults(radius=0.03)),
    }
    for name, make_trainer in trainers.items():
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                folder, num_train_epochs=arguments.epochs, learning_rate=1e-4, per_device_train_batch_size=8,
                seed=arguments.seed, save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=5,
                use_cpu=not torch.cuda.is_available(),
            )  # fmt: skip
            set_seed(arguments.seed)
            model, tokenizer = load(arguments.model)
            rows, test_rows = (
                [{**tokenizer(sentence["text"]), "labels": sentence["label"]} for sentence in sentences]
                for sentences in (train, test)
            )
            trainer = make_trainer(
                model=model, args=settings, train_dataset=rows, eval_dataset=test_rows, compute_metrics=accuracy,
                data_collator=DataCollatorWithPadding(tokenizer),
            )  # fmt: skip
            trainer.train()
            found = trainer.evaluate()
            if trainer.is_world_process_zero():
                print(f"{name}: accuracy {found['eval_accuracy']:.3f}, cross-entropy {found['eval_loss']:.4f}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_command_line(main)
