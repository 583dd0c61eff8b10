"""Tokenizers by the name of their encoder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from data_utils.errors import DataError
from data_utils.pretrained import EMBEDDED_NAME, resolve_pretrained

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
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, cache_dir=cache_dir, use_fast=True, trust_remote_code=False, **options
        )
    except Exception as error:  # the tokenizers library raises plain exceptions for a damaged file
        tried = "no tokenizer in this folder" if os.path.isdir(source) else "no such folder, and not found on the hub"
        raise DataError(
            f"tokenizer {name!r}: {tried} ({_first_line(error)}); accepted: the name of a model on the hub, "
            f"a folder with a tokenizer, or {EMBEDDED_NAME}"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"tokenizer {name!r} has no fast version; accepted: encoders with a tokenizer.json")
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # what transformers makes of a folder with a config.json and no vocabulary
        raise DataError(f"tokenizer {name!r} has no vocabulary; accepted: encoders with a tokenizer.json")
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
