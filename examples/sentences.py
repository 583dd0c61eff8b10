"""What both examples read: labelled sentences, and a model with its tokenizer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from data_utils.errors import DataError, OneLineParser, at_least
from data_utils.pretrained import EMBEDDED_NAME, resolve_pretrained
from data_utils.text_files import read_lines

LABELS = ("negative", "positive")
Sentence = dict[str, Any]


def parse_args(description: str | None, argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("sentiment.tsv"), help="label TAB text")
    parser.add_argument("--model", default=EMBEDDED_NAME, help="hub name or folder (default: %(default)s)")
    parser.add_argument("--epochs", type=at_least(1), default=3, help="passes over the data (default: %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of everything random (default: %(default)s)")
    return parser.parse_args(argv)


def read_sentences(path: Path) -> tuple[list[Sentence], list[Sentence]]:
    """Sentences to train on, and every fourth to test on.

    Raises:
        DataError: a missing file, or a line that is not `label TAB text`.
    """
    found = []
    for number, line in read_lines(path):
        label, _, text = line.partition("\t")
        if label not in LABELS or not text:
            raise DataError(f"found {line[:40]!r}; accepted: {' or '.join(LABELS)}, a tab, text", path, number)
        found.append({"text": text, "label": LABELS.index(label)})
    # of four pairs that say the opposite of each other, the last is kept for testing
    test = [sentence for index, sentence in enumerate(found) if index % 8 >= 6]
    return [sentence for sentence in found if sentence not in test], test


def load(name: str) -> tuple[Any, Any]:
    """A model with a new head of two labels, and its tokenizer."""
    source = resolve_pretrained(name)
    logging.set_verbosity_error()  # the head is new, which the library points out
    logging.disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(LABELS), trust_remote_code=False)
    return model, AutoTokenizer.from_pretrained(source, trust_remote_code=False)
