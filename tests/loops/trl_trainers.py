"""TRL's trainers on a tiny decoder: data, tokenizer, and the gradient that the regularizer adds to theirs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PreTrainedTokenizerFast

from mt_dnn.hf_trainer import AdversarialMixin
from mt_dnn.perturbation import PERTURBATIONS
from tests.hf import ALPHA, gradient_of_update, search

EOS = 1
# Prompts and completions of texts; the end of a text is a token of its own.
PROMPTS = ([5, 6], [7], [8, 9, 10])
COMPLETIONS = ([11, 12, 13, EOS], [14, EOS], [15, 16, EOS])
TEXTS = [[*prompt, *completion] for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
LABELS = [[-100] * len(prompt) + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]

os.environ["CI"] = "1"  # TRL reports its use elsewhere


def tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """A word is `w` and its number."""
    vocabulary = {
        word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(3, 40))])
    }
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", **options
    )


def words(ids: list[int]) -> str:
    return " ".join(f"w{number}" for number in ids if number != EOS)


def texts() -> Dataset:
    """Tokens with labels: those of the prompts do not count."""
    rows = [{"input_ids": text, "labels": labels} for text, labels in zip(TEXTS, LABELS, strict=True)]
    return Dataset.from_list(rows)


class InOrder:
    """Takes the examples in their order."""

    train_dataset: Any

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def trainer_of(
    kind: Any, config: Any, model: Any, folder: Path, perturbation: Any = None, alpha: float = ALPHA, **options: Any
) -> Any:
    """TRL's trainer of that kind, or the same with a regularizer; options of its configuration and of its own."""
    own = {
        name: options.pop(name)
        for name in ("train_dataset", "eval_dataset", "compute_loss_func", "ref_model", "reward_funcs", "peft_config")
        if name in options
    }
    regularizers = {name: options.pop(name) for name in ("task_loss", "ascent_loss", "noise_mask") if name in options}
    base: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "max_steps": 1,
        "per_device_train_batch_size": 3,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "activation_checkpointing": False,
    }
    arguments: dict[str, Any] = {"model": model, "args": config(**{**base, **options}), **own}
    arguments.setdefault("processing_class", tokenizer())
    # Those that generate draw their prompts by a sampler of their own.
    bases = (kind,) if hasattr(kind, "_generate_and_score_completions") else (InOrder, kind)
    if perturbation is None:
        return type(kind.__name__, bases, {})(**arguments)
    made = type(f"Adversarial{kind.__name__}", (AdversarialMixin, *bases), {})
    return made(perturbation=perturbation, alpha=alpha, **regularizers, **arguments)


def added_gradient(regularized: Any, plain: Any) -> dict[str, Tensor]:
    """What R adds to the gradient of an update."""
    torch.manual_seed(3)
    found = gradient_of_update(regularized)
    torch.manual_seed(3)
    without = gradient_of_update(plain)
    return {name: found[name] - without[name] for name in found}


def largest(gradient: dict[str, Tensor]) -> float:
    return max(float(value.abs().max()) for value in gradient.values())


def trained(*trainers: Any) -> None:
    """Runs them from one state of torch's generator."""
    for trainer in trainers:
        torch.manual_seed(3)
        trainer.train()


def logged(trainer: Any, *names: str) -> list[list[float]]:
    """These values of every entry with a training loss."""
    return [[entry[name] for name in names] for entry in trainer.state.log_history if "loss" in entry]


def method(name: str) -> Any:
    """The method of plain size; FreeLB at two points, ALUM from the first update."""
    options: dict[str, dict[str, Any]] = {"alum": {"start_ratio": 0.0}, "freelb": {"k": 2}}
    return search(PERTURBATIONS[name], **options.get(name, {}))


@pytest.fixture(scope="module")
def frozen_memory() -> Iterator[None]:
    """What is imported is not looked through when a training begins, which takes most of its time."""
    gc.freeze()
    yield
    gc.unfreeze()
