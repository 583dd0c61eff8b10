"""Tiny models of transformers with a head, in float64, their data, and one update of a Trainer on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import SequentialSampler, default_collate

from mt_dnn.huggingface.trainer import AdversarialTrainer
from mt_dnn.perturbation import SmartPerturbation

HEADS = ("classification", "regression", "tokens", "spans", "generation")
LENGTHS = (7, 4, 6)
WIDTH = 7
RADIUS, STEP, SIGMA, ALPHA = 0.1, 0.05, 0.06, 0.7


def tiny_model(head: str, *, dropout: float = 0.0, dtype: torch.dtype = torch.float64, **config: Any) -> Any:
    """BERT with this head, or Llama for `generation`, in training mode; its weights are large, so that logits move."""
    sizes: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 24,
        **config,
    }
    torch.manual_seed(0)
    if head == "generation":
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_key_value_heads=2))
    else:
        kind = {"tokens": "TokenClassification", "spans": "QuestionAnswering"}.get(head, "SequenceClassification")
        labels = {"num_labels": 1 if head == "regression" else 2 if head == "spans" else 3}
        drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        bert = transformers.BertConfig(**{**sizes, **drop, **labels, **config})
        model = getattr(transformers, f"BertFor{kind}")(bert)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.to(dtype).train()


def examples(head: str, lengths: tuple[int, ...] = LENGTHS, width: int = WIDTH) -> list[dict[str, Any]]:
    """Padded examples; of tokens' labels the first of each example does not count, of targets the prompt."""
    generator = torch.Generator().manual_seed(1)

    def numbers(low: int, high: int, length: int) -> list[int]:
        return torch.randint(low, high, (length,), generator=generator).tolist()

    found = []
    for row, length in enumerate(lengths):
        ids, padding = numbers(5, 40, length), width - length
        example: dict[str, Any] = {
            "input_ids": ids + [0] * padding,
            "attention_mask": [1] * length + [0] * padding,
        }
        if head == "classification":
            example["labels"] = row % 3
        elif head == "regression":
            example["labels"] = 0.5 * row - 0.3
        elif head == "spans":
            example |= {"start_positions": row % length, "end_positions": length - 1}
        elif head == "tokens":
            example["labels"] = [-100, *numbers(0, 3, length - 1)] + [-100] * padding
        else:
            prompt = 2 * (row % 2)
            example["labels"] = [-100] * prompt + ids[prompt:] + [-100] * padding
        found.append(example)
    return found


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    batch = default_collate([{name: torch.tensor(value) for name, value in row.items()} for row in rows])
    return {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}


def search(kind: type[Any] = SmartPerturbation, **options: Any) -> Any:
    """A method with ascent, noise and ball of plain size, at sign-free `inf` steps."""
    return kind(**{"radius": RADIUS, "step_size": STEP, "noise_var": SIGMA, **options})


class OrderedTrainer(AdversarialTrainer):
    """Takes the examples in their order."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def arguments(folder: Path, **options: Any) -> transformers.TrainingArguments:
    """One update of plain gradient descent at rate 1, so that what it subtracts is the gradient."""
    base: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 1,
        "per_device_train_batch_size": len(LENGTHS),
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments(**{**base, **options})


def trainer_of(model: nn.Module, head: str, folder: Path, perturbation: Any = None, **options: Any) -> OrderedTrainer:
    """A trainer on `examples(head)`; options of `TrainingArguments`, and `alpha`, `train_dataset`, `kind` and more."""
    own = {
        name: options.pop(name)
        for name in ("alpha", "train_dataset", "eval_dataset", "unlabeled_dataset", "compute_loss_func")
        if name in options
    }
    kind = options.pop("kind", OrderedTrainer)
    own = {"alpha": ALPHA, "train_dataset": examples(head), **own}
    return kind(
        model=model,
        args=arguments(folder, **options),
        data_collator=collate,
        perturbation=search() if perturbation is None else perturbation,
        **own,
    )


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def gradient_of_update(trainer: Any) -> dict[str, Tensor]:
    """The gradient of one update, parameter by parameter: what the update subtracted."""
    before = parameters(trainer.model)
    trainer.train()
    after = parameters(trainer.model)
    return {name: before[name] - after[name] for name in before}


def assert_equal_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name],
            gradient,
            rtol=0,
            atol=tolerance,
            msg=lambda text: f"{name}: {text}",  # noqa: B023
        )
