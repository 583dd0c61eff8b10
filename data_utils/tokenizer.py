"""Tokenizers by the name of their encoder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data_utils.errors import DataError, first_line
from data_utils.pretrained import EMBEDDED_NAME, resolve_pretrained

LARGEST_ID = (1 << 24) - 1  # the library loops over all ids up to the largest when it saves a tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(
    name: str, do_lower_case: bool | None = None, cache_dir: str | None = None
) -> PreTrainedTokenizerFast:
    """The fast tokenizer of an encoder.

    Args:
        name: hub name, local folder, or `embedded-minilm`.
        do_lower_case: overrides the tokenizer's setting, if its kind has one; None leaves it.
        cache_dir: folder of downloads; None for transformers' default.

    Raises:
        DataError: nothing of that name is found, or it has no fast tokenizer, or one without a vocabulary.
    """
    # the import takes seconds: mistakes in flags are reported before it
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = resolve_pretrained(name)
    options = {} if do_lower_case is None else {"do_lower_case": do_lower_case}
    problem = "no tokenizer in this folder" if os.path.isdir(source) else "no such folder, and not found on the hub"
    with tokenizer_errors(name, problem):
        tokenizer = AutoTokenizer.from_pretrained(
            source, cache_dir=cache_dir, use_fast=True, trust_remote_code=False, **options
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"tokenizer {name!r} has no fast version; accepted: encoders with a tokenizer.json")
    vocabulary = tokenizer.get_vocab()
    if set(vocabulary) <= set(tokenizer.all_special_tokens):
        # transformers loads such a tokenizer from a folder with a config.json and no vocabulary
        raise DataError(f"tokenizer {name!r} has no vocabulary; accepted: encoders with a tokenizer.json")
    if (largest := max(vocabulary.values())) > LARGEST_ID:
        raise DataError(f"tokenizer {name!r} has a word with the id {largest}; accepted: ids up to {LARGEST_ID}")
    return tokenizer


@contextmanager
def tokenizer_errors(name: str, problem: str = "cannot encode a text") -> Iterator[None]:
    """Turn errors of the tokenizers library in the block, as from a damaged file, into a `DataError` of one line.

    Args:
        name: of the tokenizer.
        problem: what the line says.

    Raises:
        DataError: the library raised an error, or panicked.
    """
    try:
        yield
    except BaseException as error:
        # a panic of Rust's is no Exception and cannot be imported by name
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"tokenizer {name!r}: {problem} ({first_line(error)}); accepted: the name of a model on the hub, "
            f"a folder with a tokenizer, or {EMBEDDED_NAME}"
        ) from error
