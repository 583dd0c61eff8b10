"""SiFT in a training loop of your own: one line makes the regularizer, one line adds it to the loss.

python -m examples.plain_pytorch
"""

from __future__ import annotations

from typing import Any

import torch

from data_utils.errors import run_command_line
from examples.sentences import Sentence, load, parse_args, read_sentences
from mt_dnn.perturbation import SiftPerturbation


def batch_of(sentences: list[Sentence], tokenizer: Any) -> dict[str, torch.Tensor]:
    batch = tokenizer([sentence["text"] for sentence in sentences], padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([sentence["label"] for sentence in sentences])}


def main(argv: list[str] | None = None) -> None:
    arguments = parse_args(__doc__, argv)
    train, test = read_sentences(arguments.data)
    for regularized in (False, True):
        torch.manual_seed(arguments.seed)
        model, tokenizer = load(arguments.model)
        regularizer = SiftPerturbation.for_model(model, radius=0.03)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        model.train()
        for _ in range(arguments.epochs):
            for index in torch.randperm(len(train)).split(8):
                batch = batch_of([train[i] for i in index], tokenizer)
                output = model(**batch)
                loss = output.loss
                if regularized:
                    loss = loss + regularizer.alpha * regularizer(model, batch, output.logits)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        batch = batch_of(test, tokenizer)
        with torch.inference_mode():
            output = model(**batch)
        correct = int((output.logits.argmax(-1) == batch["labels"]).sum())
        name = "SiFT " if regularized else "plain"
        print(f"{name}: {correct} of {len(test)} correct, cross-entropy {output.loss:.4f}")


if __name__ == "__main__":
    run_command_line(main)
