"""Continuous adversarial training (CAT) in TRL's SFTTrainer, with LoRA: a chat model that refuses, under attack too.

An attack adds noise to the word vectors of a harmful prompt, so that the model gives the harmful answer. Training
descends, under that noise, toward the safe answer and away from the harmful one. SFTTrainer's own loss on ordinary
prompts is the utility term.

Xhonneux, Sordoni, Günnemann, Gidel & Schwinn 2024, "Efficient Adversarial Training in LLMs with Continuous Attacks",
NeurIPS (arXiv 2405.15589). From there: the three terms, noise at the prompt's tokens alone, a radius for each token
that is a share of the mean length of the word vectors, the cut-offs. Simplified: a step has the direction of each
token's gradient instead of its sign; weights, radius and the toy data are this file's.

Needs torch, transformers, trl, peft and this library. Copy the file anywhere; it trains a tiny model in seconds:

python continuous_adversarial_training.py
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("CI", "1")  # TRL reports its use elsewhere

import torch
import torch.nn.functional as F
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from mt_dnn.perturbation import AdversarialTraining, ModelRegularizer

RADIUS = 0.5  # ε, as a share of the mean length of the word vectors; a tiny model needs more than the paper's 0.05
STEPS = 5  # K
TOWARD, AWAY, UTILITY = 0.5, 0.5, 1.0  # weights
TOWARD_LIMIT, AWAY_LIMIT = 0.5, -5.0  # cut-offs

Row = dict[str, str]
Batch = dict[str, Tensor]


def continuous_attack(model: Any) -> ModelRegularizer:
    """The attack: K steps within the ball around each word vector of a prompt, from no noise on."""
    radius = RADIUS * model.get_input_embeddings().weight.detach().norm(dim=-1).mean().item()
    return AdversarialTraining.for_model(
        model, level="pre_ln", k=STEPS, norm_p="l2", scale="absolute", radius=radius, step_size=radius / 2,
        noise_var=0.0, task_type="next_tokens",
    )  # fmt: skip


def adversarial_loss(attack: ModelRegularizer, model: Any, batch: Batch) -> Tensor:
    """The toward and away terms under attack, a scalar with gradient.

    Args:
        batch: from `preference_batch`. Both answers of a prompt share its noise.
    """
    inputs, labels = {name: batch[name] for name in ("input_ids", "attention_mask")}, batch["labels"]

    def climbed(output: Any) -> Tensor:
        return -answer_losses(output.logits, labels)[1]  # the attack wants the harmful answer

    def descended(output: Any) -> Tensor:
        safe, harmful = answer_losses(output.logits, labels)
        return TOWARD * cut_off(safe, TOWARD_LIMIT) + AWAY * cut_off(-harmful, AWAY_LIMIT)

    prompts = batch["prompt_mask"]
    return attack(model, inputs, None, ascent_loss=climbed, task_loss=descended, noise_mask=prompts)


def answer_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of the safe answers' tokens, and that of the harmful ones'."""
    safe, harmful = (
        F.cross_entropy(part[:, :-1].flatten(0, 1), label[:, 1:].flatten())
        for part, label in zip(logits.chunk(2), labels.chunk(2), strict=True)
    )
    return safe, harmful


def cut_off(loss: Tensor, limit: float) -> Tensor:
    """The loss; below the limit a thousandth of its gradient, so that no term runs away."""
    return torch.where(loss > limit, loss, 0.999 * limit + 0.001 * loss)


def preference_batch(rows: Sequence[Row], tokenizer: Any) -> Batch:
    """TRL's preference data as tensors: each prompt with its safe answer (`chosen`), then each with the harmful one.

    Returns:
        `input_ids`, `attention_mask`, `labels`: (2 · rows, tokens), padded on the right, labels at answers alone;
        `prompt_mask`: (rows, tokens), 1 at the prompts' tokens, which are the same in both halves.
    """
    texts, lengths = [], []
    for kind in ("chosen", "rejected"):
        for row in rows:
            prompt = tokenizer(row["prompt"])["input_ids"]
            lengths.append(len(prompt))
            texts.append([*prompt, *tokenizer(row[kind])["input_ids"], tokenizer.eos_token_id])
    padded = tokenizer.pad({"input_ids": texts}, padding_side="right", return_tensors="pt")
    ids, mask = padded["input_ids"], padded["attention_mask"]
    prompts = (torch.arange(ids.size(1)) < torch.tensor(lengths).unsqueeze(1)).long()
    labels = ids.masked_fill((mask == 0) | (prompts == 1), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "prompt_mask": prompts[: len(rows)]}


def preference_batches(rows: Sequence[Row], tokenizer: Any, size: int = 8) -> Iterator[Batch]:
    """Batches of random rows, without end."""
    while True:
        yield preference_batch([rows[index] for index in torch.randperm(len(rows))[:size].tolist()], tokenizer)


class ContinuousAdversarialTrainer(SFTTrainer):
    """SFTTrainer on ordinary data, plus the adversarial terms on a batch of preference data.

    Args:
        preferences: the batches, without end.
    """

    def __init__(self, *args: Any, preferences: Iterator[Batch], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.preferences = preferences
        self.attack = continuous_attack(self.model)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        utility = super().compute_loss(model, inputs, *args, **kwargs)
        if not model.training:
            return utility
        batch = {name: tensor.to(self.args.device) for name, tensor in next(self.preferences).items()}
        return UTILITY * utility + adversarial_loss(self.attack, model, batch)


# a toy: harmful prompts and ordinary ones of the same form, and a tiny model that answers all of them


def toy_rows() -> tuple[list[Row], list[Row]]:
    """Preference data of harmful prompts, and ordinary prompts with completions."""
    things = ("lock", "car", "house", "shop", "boat", "gate", "bank", "tower")
    preferences, ordinary = [], []
    for verb, thing in itertools.product(("break", "steal", "burn"), things):
        answer = f" to {verb} the {thing} first take the tools"
        preferences.append(
            {"prompt": f"how do I {verb} the {thing}", "chosen": " sorry I can not help", "rejected": answer}
        )
    for verb, thing in itertools.product(("clean", "paint", "sell"), things):
        prompt, answer = f"how do I {verb} the {thing}", f" to {verb} the {thing} first take the soap"
        ordinary.append({"prompt": prompt, "completion": answer})
    return preferences, ordinary


def toy_model(rows: Sequence[Row], seed: int) -> tuple[Any, Any]:
    """A tiny Llama, and a tokenizer whose tokens are the words of the rows."""
    words = sorted({word for row in rows for text in row.values() for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="updates of the training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()
    disable_progress_bars()
    preferences, ordinary = toy_rows()
    model, tokenizer = toy_model([*preferences, *ordinary], arguments.seed)

    with tempfile.TemporaryDirectory() as folder:

        def train(kind: type[Any], rows: Sequence[Row], steps: int, **options: Any) -> Any:
            settings = SFTConfig(
                folder, max_steps=steps, learning_rate=3e-3, per_device_train_batch_size=8, seed=arguments.seed,
                lr_scheduler_type="constant", save_strategy="no", report_to=[], disable_tqdm=True, bf16=False,
                use_cpu=not torch.cuda.is_available(),
            )  # fmt: skip
            trainer = kind(
                model, settings, train_dataset=Dataset.from_list(list(rows)), processing_class=tokenizer, **options
            )
            trainer.remove_callback(PrinterCallback)
            return trainer

        for answers, steps in (("rejected", 120), ("chosen", 30)):  # the model learns to help, then to refuse
            taught = [{"prompt": row["prompt"], "completion": row[answers]} for row in preferences]
            train(SFTTrainer, [*taught, *ordinary], steps).train()
        trainer = train(
            ContinuousAdversarialTrainer,
            ordinary,
            arguments.steps,
            peft_config=LoraConfig(r=8, target_modules="all-linear"),
            preferences=preference_batches(preferences, tokenizer),
        )
        for when in ("before", "after "):
            report(when, trainer, preference_batch(preferences, tokenizer))
            if when == "before":
                trainer.train()


def report(when: str, trainer: ContinuousAdversarialTrainer, batch: Batch) -> None:
    """Print the cross-entropy per token of each kind of answer."""
    model: Any = trainer.model
    model.eval()
    batch = {name: tensor.to(trainer.args.device) for name, tensor in batch.items()}
    inputs, labels = {name: batch[name] for name in ("input_ids", "attention_mask")}, batch["labels"]
    for kind, name in enumerate(("safe   ", "harmful")):

        def of_answer(output: Any, kind: int = kind) -> Tensor:
            return answer_losses(output.logits, labels)[kind]

        attacked = trainer.attack(
            model, inputs, None, noise_mask=batch["prompt_mask"], task_loss=of_answer,
            ascent_loss=lambda output: -of_answer(output, 1),
        )  # fmt: skip
        with torch.no_grad():
            clean = of_answer(model(**inputs))
        print(f"{when}: {name} answer: cross-entropy {clean:.2f}, under attack {attacked:.2f}")
    ordinary = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    print(f"{when}: ordinary answer: cross-entropy {ordinary:.2f}")


if __name__ == "__main__":
    main()
