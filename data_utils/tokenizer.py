"""Tokenizers by the name of their encoder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data_utils.errors import DataError, first_line
from data_utils.pretrained import EMBEDDED_NAME, resolve_pretrained

LARGEST_ID = (1 << 24) - 1  # the library runs through all ids up to the largest when it writes them

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(
    name: str, do_lower_case: bool | None = None, cache_dir: str | None = None
) -> PreTrainedTokenizerFast:
    """The fast tokenizer of an encoder.

    Args:
        name: hub name, local folder, or `embedded-minilm`.
        do_lower_case: overrides the tokenizer's own setting, where its kind has one; None leaves it.
        cache_dir: where downloads are kept; None for transformers' own folder.

    Raises:
        DataError: nothing of that name is found, or it holds no fast tokenizer or an empty one.
    """
    # the import takes seconds, which a mistake found before need not wait for
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = resolve_pretrained(name)
    options = {} if do_lower_case is None else {"do_lower_case": do_lower_case}
    tried = "no tokenizer in this folder" if os.path.isdir(source) else "no such folder, and not found on the hub"
    with usable(name, tried):
        tokenizer = AutoTokenizer.from_pretrained(
            source, cache_dir=cache_dir, use_fast=True, trust_remote_code=False, **options
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"tokenizer {name!r} has no fast version; accepted: encoders with a tokenizer.json")
    vocabulary = tokenizer.get_vocab()
    if set(vocabulary) <= set(tokenizer.all_special_tokens):
        # what transformers makes of a folder with a config.json and no vocabulary
        raise DataError(f"tokenizer {name!r} has no vocabulary; accepted: encoders with a tokenizer.json")
    if (largest := max(vocabulary.values())) > LARGEST_ID:
        raise DataError(f"tokenizer {name!r} has a word with the id {largest}; accepted: ids up to {LARGEST_ID}")
    return tokenizer


@contextmanager
def usable(name: str, otherwise: str = "cannot encode a text") -> Iterator[None]:
    """What the tokenizers library raises in the block over a file that is damaged or contradicts itself, as a line.

    Args:
        name: of the tokenizer.
        otherwise: what the line says of it.

    Raises:
        DataError: the library raised an error, or panicked.
    """
    try:
        yield
    except BaseException as error:
        # the library raises plain exceptions, and a panic of Rust's, which is no Exception and has no importable name
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"tokenizer {name!r}: {otherwise} ({first_line(error)}); accepted: the name of a model on the hub, "
            f"a folder with a tokenizer, or {EMBEDDED_NAME}"
        ) from error
