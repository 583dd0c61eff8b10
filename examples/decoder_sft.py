"""SFT of a decoder with TRL and LoRA: plain, NEFTune, SMART with relative noise, adversarial training.

Needs torch, transformers, trl, peft, datasets and this library. Run it in the repository:

python -m examples.decoder_sft --data tweets.tsv reviews.tsv

The first run trains a small decoder on the texts of all files (small_decoder.py). Then LoRA adapters learn to write a
text of the first file by its label: `A positive sentence: …`. A fifth of the texts is for testing. The table has their
perplexity, given the prompt: clean, with noise in a random direction, and under attack. The noise is a share of each
word vector's length. Lower is better.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, PrinterCallback, set_seed
from trl import SFTConfig, SFTTrainer

from examples.small_decoder import Row, attack, load_decoder, noisy, random_noise, read_arguments, spread
from mt_dnn.hf_trainer import AdversarialMixin
from mt_dnn.perturbation import PERTURBATIONS


class AdversarialSFT(AdversarialMixin, SFTTrainer):
    """TRL's SFTTrainer with a regularizer."""


# Name in the table → method of this library, NEFTune's α of TRL's own.
METHODS = {"plain": (None, None), "NEFTune": (None, 5.0), "SMART": ("smart", None), "at": ("at", None)}


def main(argv: list[str] | None = None) -> None:
    arguments, files = read_arguments(argv, __doc__, rows=1200, tests=200, epochs=1)
    disable_progress_bars()
    texts = [row.text for rows in files for row in rows if not row.is_test]
    tokenizer = load_decoder(arguments.decoder, texts, arguments.updates)
    train = [row for row in files[0] if not row.is_test][: arguments.rows]
    test = [row for row in files[0] if row.is_test][: arguments.tests]
    print(f"{len(train)} rows to train on, {len(test)} to test on", flush=True)

    lines = [f"| method | clean | random noise of {arguments.radius} | attack of {arguments.radius} | s/update |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    decoder = AutoModelForCausalLM.from_pretrained(arguments.decoder, trust_remote_code=False).eval()
    before = perplexities(decoder, tokenizer, test, arguments.radius)
    lines.append(" | ".join(["| before", *(f"{value:.1f}" for value in before), "|"]))
    print(lines[-1], flush=True)
    for name in METHODS:
        found = [run(name, arguments, tokenizer, train, test, seed) for seed in range(arguments.seeds)]
        *scores, seconds = zip(*found, strict=True)
        lines.append(" | ".join([f"| {name}", *(spread(values, 1) for values in scores), f"{spread(seconds, 2)} |"]))
        print(lines[-1], flush=True)
    print("\nperplexity\n\n" + "\n".join(lines))


def run(
    name: str, arguments: argparse.Namespace, tokenizer: Any, train: list[Row], test: list[Row], seed: int
) -> tuple[float, ...]:
    """Perplexity of clean, noisy and attacked texts, and the seconds of an update."""
    set_seed(seed)
    method, neftune = METHODS[name]
    model = AutoModelForCausalLM.from_pretrained(arguments.decoder, trust_remote_code=False)
    data = Dataset.from_list([{"prompt": prompt_of(row), "completion": f" {row.text}"} for row in train])
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            folder, num_train_epochs=arguments.epochs, learning_rate=2e-3, per_device_train_batch_size=16, seed=seed,
            lr_scheduler_type="linear", save_strategy="no", report_to=[], disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(), bf16=False, logging_strategy="no", neftune_noise_alpha=neftune,
        )  # fmt: skip
        options: dict[str, Any] = {
            "model": model,
            "args": settings,
            "train_dataset": data,
            "processing_class": tokenizer,
            "peft_config": LoraConfig(r=8, target_modules="all-linear"),
        }
        if method is None:
            trainer = SFTTrainer(**options)
        else:
            trainer = AdversarialSFT(**options, perturbation=PERTURBATIONS[method].with_defaults())
        trainer.remove_callback(PrinterCallback)
        seconds = trainer.train().metrics["train_runtime"] / trainer.state.max_steps
        tuned: Any = trainer.model
    return (*perplexities(tuned.cpu().eval(), tokenizer, test, arguments.radius), seconds)


def prompt_of(row: Row) -> str:
    return f"A {row.label} sentence:"


def perplexities(model: Any, tokenizer: Any, test: list[Row], radius: float) -> list[float]:
    """Perplexity of the texts after their prompts: clean, with random noise and under attack."""
    total, tokens = torch.zeros(3, dtype=torch.float64), 0
    for first in range(0, len(test), 50):
        batch = batch_of(test[first : first + 50], tokenizer)
        count = int((batch["labels"] != -100).sum())

        def loss(output: Any, count: int = count) -> Tensor:
            summed: Tensor = output.loss * count
            return summed

        noises = [torch.zeros(()), random_noise(model, batch, radius), attack(model, batch, radius, loss)]
        with torch.no_grad():
            total += torch.tensor([loss(noisy(model, batch, noise)).item() for noise in noises])
        tokens += count
    return [math.exp(value) for value in (total / tokens).tolist()]


def batch_of(rows: list[Row], tokenizer: Any) -> dict[str, Tensor]:
    """Prompts with their texts and an end, (rows, tokens), and `labels`: the texts' tokens and the end."""
    prompts = [tokenizer(prompt_of(row))["input_ids"] for row in rows]
    texts = [[*tokenizer(f" {row.text}")["input_ids"], tokenizer.eos_token_id] for row in rows]
    length = max(len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True))
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, text in zip(prompts, texts, strict=True):
        padding = length - len(prompt) - len(text)
        batch["input_ids"].append(prompt + text + [tokenizer.pad_token_id] * padding)
        batch["attention_mask"].append([1] * (length - padding) + [0] * padding)
        batch["labels"].append([-100] * len(prompt) + text + [-100] * padding)
    return {name: torch.tensor(values) for name, values in batch.items()}


if __name__ == "__main__":
    main()
