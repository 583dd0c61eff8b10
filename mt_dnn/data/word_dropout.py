"""Replaces tokens of training examples by the unknown token (`--dropout_w`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from data_utils.errors import FlagError
from data_utils.tokenizer import load_tokenizer
from mt_dnn.batcher import Batch
from mt_dnn.configuration.config import Config
from mt_dnn.perturbation.noise import example_seeds, standard_noise


class WordDropout:
    """Replaces each token, special tokens excepted, by the unknown token with a probability.

    The choice depends on the row's seed only, so that all passes of an update see the same tokens.

    Args:
        probability: of each token.
        unknown: the unknown token's id.
        special: ids that are never replaced.
    """

    def __init__(self, probability: float, unknown: int, special: Sequence[int]):
        self.probability = probability
        self.unknown = unknown
        self.special = torch.tensor(sorted(special))

    @classmethod
    def of(cls, config: Config) -> WordDropout | None:
        """The word dropout of the configuration; None with `--dropout_w 0`.

        Raises:
            UserError: the tokenizer cannot be loaded, or has no unknown token.
        """
        if config.training.dropout_w == 0:
            return None
        tokenizer = load_tokenizer(config.tokenizer, cache_dir=config.training.transformer_cache)
        if tokenizer.unk_token_id is None:
            raise FlagError(f"--dropout_w: the tokenizer {config.tokenizer!r} has no unknown token; accepted: 0")
        return cls(config.training.dropout_w, tokenizer.unk_token_id, tokenizer.all_special_ids)

    def __call__(self, batch: Batch, seeds: Sequence[int]) -> Batch:
        """The batch, on the CPU, with some tokens replaced; `seeds` has one seed per row."""
        own = [example_seeds(seed, 0, ["word_dropout"])[0] for seed in seeds]
        drawn = standard_noise(batch.attention_mask, 1, torch.float32, own, "uniform").squeeze(-1)
        words = batch.attention_mask.bool() & ~torch.isin(batch.input_ids, self.special)
        replaced = words & ((drawn + 1) / 2 < self.probability)
        return replace(batch, input_ids=batch.input_ids.masked_fill(replaced, self.unknown))
