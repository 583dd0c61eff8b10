"""Targeted latent adversarial training (LAT) in a plain loop, with LoRA: refusals that hold under noise at the layers.

An attack adds noise at several places at once, the word vectors and the outputs of layers, at a harmful prompt's
tokens. It climbs toward the harmful answer and away from the safe one. Training descends, under that noise, toward the
safe answer and away from the harmful one, and on ordinary prompts without noise.

Casper et al. 2024, "Defending Against Unforeseen Failure Modes with Latent Adversarial Training" (arXiv 2403.05030);
targeted: Sheshadri et al. 2024, "Latent Adversarial Training Improves Robustness to Persistent Harmful Behaviors in
LLMs" (arXiv 2407.15549). From there: noise in the residual stream at several places, one search for all of them, a
radius in ℓ2 for each token; the toward and away terms of attack and defense, with -log(1 - p) for away, and the term on
ordinary data. Simplified: places, radius, weights and the toy data are this file's; here a radius is a share of each
vector's length.

Needs torch, transformers, peft and this library; the data has TRL's formats. Copy the file anywhere; it trains a tiny
model in seconds:

python latent_adversarial_training.py
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from mt_dnn.perturbation import AdversarialTraining, ModelRegularizer

PLACES = ("pre_ln", "hidden:0", "hidden:1")
RADIUS = 0.3  # ε at each place, as a share of each vector's length
STEPS = 5  # K
IGNORED = -100  # label of tokens without a loss
THRESHOLD = -5.0  # log p below which the away term leaves a token alone

Row = dict[str, str]
Batch = dict[str, Tensor]


def latent_attack(model: Any) -> ModelRegularizer:
    """The attack: K steps within the balls around a prompt's vectors at all places, from no noise on."""
    return AdversarialTraining.for_model(
        model, level=PLACES, k=STEPS, norm_p="l2", scale="relative", radius=RADIUS, step_size=RADIUS / 2,
        noise_var=0.0, task_type="next_tokens",
    )  # fmt: skip


def adversarial_loss(attack: ModelRegularizer, model: Any, batch: Batch) -> Tensor:
    """The loss of the defense under attack, a scalar with gradient.

    Args:
        batch: from `preference_batch`. Both answers of a prompt share its noise.
    """
    (safe, harmful), prompts = batch["labels"].chunk(2), batch["prompt_mask"]

    def climbed(output: Any) -> Tensor:
        for_safe, for_harmful = output.logits.chunk(2)
        return -toward(for_harmful, harmful) - away(for_safe, safe)

    def descended(output: Any) -> Tensor:
        for_safe, for_harmful = output.logits.chunk(2)
        return toward(for_safe, safe) + away(for_harmful, harmful)

    return attack(model, inputs_of(batch), None, ascent_loss=climbed, task_loss=descended, noise_mask=prompts)


def toward(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log p over the tokens with a label."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def away(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log(1 - p) over the tokens with a label; 0 for those whose log p is below the threshold."""
    labels = labels[:, 1:]
    real = labels != IGNORED
    log_p = logits[:, :-1][real].log_softmax(-1)
    label = labels[real].unsqueeze(-1)
    log_of_others = log_p.scatter(-1, label, -torch.inf).logsumexp(-1)
    return -log_of_others.where(log_p.gather(-1, label).squeeze(-1) >= THRESHOLD, 0.0).mean()


def inputs_of(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def preference_batch(rows: Sequence[Row], vocabulary: dict[str, int]) -> Batch:
    """TRL's preference data as tensors: each prompt with its safe answer (`chosen`), then each with the harmful one.

    Returns:
        `input_ids`, `attention_mask`, `labels`: (2 · rows, tokens), padded on the right, labels at answers alone;
        `prompt_mask`: (rows, tokens), 1 at the prompts' tokens, which are the same in both halves.
    """
    pairs = [(row["prompt"], row[kind]) for kind in ("chosen", "rejected") for row in rows]
    batch = batch_of(pairs, vocabulary)
    prompts = batch["attention_mask"] * (batch["labels"] == IGNORED)
    return {**batch, "prompt_mask": prompts[: len(rows)]}


def batch_of(pairs: Sequence[tuple[str, str]], vocabulary: dict[str, int]) -> Batch:
    """Prompts with answers as the model's arguments; a word is a token."""
    ids, labels = [], []
    for prompt, answer in pairs:
        before = [vocabulary[word] for word in prompt.split()]
        after = [*(vocabulary[word] for word in answer.split()), vocabulary["<eos>"]]
        ids.append(torch.tensor(before + after))
        labels.append(torch.tensor([IGNORED] * len(before) + after))
    mask = [torch.ones_like(text) for text in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence(mask, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


# a toy: harmful prompts and ordinary ones of the same form, and a tiny model that answers them


def toy_rows() -> tuple[list[Row], list[Row]]:
    """Preference data of harmful prompts, and ordinary prompts with completions."""
    things = ("lock", "car", "house", "shop", "boat", "gate", "bank", "tower")
    preferences, ordinary = [], []
    for verb, thing in itertools.product(("break", "steal", "burn"), things):
        answer = f"to {verb} the {thing} first take the tools"
        preferences.append(
            {"prompt": f"how do I {verb} the {thing}", "chosen": "sorry I can not help", "rejected": answer}
        )
    for verb, thing in itertools.product(("clean", "paint", "sell"), things):
        answer = f"to {verb} the {thing} first take the soap"
        ordinary.append({"prompt": f"how do I {verb} the {thing}", "completion": answer})
    return preferences, ordinary


def toy_model(vocabulary: dict[str, int]) -> Any:
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=40, help="updates of the training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()
    torch.manual_seed(arguments.seed)
    preferences, ordinary = toy_rows()
    words = sorted({word for row in [*preferences, *ordinary] for text in row.values() for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", *words])}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = toy_model(vocabulary).to(device)

    def utility_batch(size: int = 8) -> Batch:
        rows = [ordinary[index] for index in torch.randperm(len(ordinary))[:size].tolist()]
        return moved(batch_of([(row["prompt"], row["completion"]) for row in rows], vocabulary), device)

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for answers, updates in (("rejected", 120), ("chosen", 30)):  # the model learns to help, then to refuse
        for _ in range(updates):
            rows = [preferences[index] for index in torch.randperm(len(preferences))[:8].tolist()]
            taught = moved(batch_of([(row["prompt"], row[answers]) for row in rows], vocabulary), device)
            step(optimizer, model(**taught).loss + model(**utility_batch()).loss)

    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    attack = latent_attack(model)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    everything = moved(preference_batch(preferences, vocabulary), device)
    report("before", attack, model, everything, utility_batch(len(ordinary)))
    model.train()
    for _ in range(arguments.updates):
        rows = [preferences[index] for index in torch.randperm(len(preferences))[:8].tolist()]
        batch = moved(preference_batch(rows, vocabulary), device)
        step(optimizer, adversarial_loss(attack, model, batch) + model(**utility_batch()).loss)
    report("after ", attack, model, everything, utility_batch(len(ordinary)))


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def moved(batch: Batch, device: str) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def report(when: str, attack: ModelRegularizer, model: Any, batch: Batch, ordinary: Batch) -> None:
    """Print the cross-entropy per token of each kind of answer."""
    model.eval()
    labels = batch["labels"].chunk(2)
    for half, name in enumerate(("safe   ", "harmful")):

        def of_answer(output: Any, half: int = half) -> Tensor:
            return toward(output.logits.chunk(2)[half], labels[half])

        attacked = attack(
            model, inputs_of(batch), None, noise_mask=batch["prompt_mask"], task_loss=of_answer,
            ascent_loss=lambda output: of_answer(output, 0) - of_answer(output, 1),
        )  # fmt: skip
        with torch.no_grad():
            clean = of_answer(model(**inputs_of(batch)))
        print(f"{when}: {name} answer: cross-entropy {clean:.2f}, under attack {attacked:.2f}")
    with torch.no_grad():
        print(f"{when}: ordinary answer: cross-entropy {model(**ordinary).loss:.2f}")


if __name__ == "__main__":
    main()
