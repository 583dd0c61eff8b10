"""Masking for masked language modeling: which tokens the model has to predict, and what replaces them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MASKED, KEPT = 0.8, 0.1  # shares of the chosen tokens: mask token, unchanged; the rest become random tokens
LATER_PIECE = "##"  # WordPiece's prefix of all pieces of a word except the first


class Masker:
    """Masks whole words of token sequences [Devlin et al. 2019, section 3.1], with a new draw in every call.

    With tokenizers other than WordPiece, whose pieces do not show where a word begins, every piece is a word.

    Args:
        tokenizer: of the encoder.
        words: size of the encoder's vocabulary.
        share: of a sequence's tokens that are chosen.
        most: chosen tokens of a sequence, at most.

    Attributes:
        pad_token_id: the tokenizer's.

    Raises:
        ValueError: the tokenizer has no mask token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, words: int, share: float, most: int):
        if tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no mask token")
        self.mask_token_id = int(tokenizer.mask_token_id)
        self.pad_token_id = int(tokenizer.pad_token_id or 0)
        self.share = share
        self.most = most
        self._special = np.ones(words, bool)  # ids without a token are never drawn
        self._later = np.zeros(words, bool)
        known = {token: index for token, index in tokenizer.get_vocab().items() if index < words}
        self._special[list(known.values())] = False
        self._special[[index for index in tokenizer.all_special_ids if index < words]] = True
        self._later[[index for token, index in known.items() if token.startswith(LATER_PIECE)]] = True
        self._ordinary = np.flatnonzero(~self._special)

    def __call__(self, tokens: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Mask one sequence.

        Args:
            tokens: (tokens,), special tokens included, without padding.
            draw: the generator; the choice depends only on it and the tokens.

        Returns:
            The tokens that the model sees, (tokens,), and the positions that it has to predict, in order: at least one
            if there is a word, and all pieces of a word unless a single word has more than may be chosen.
        """
        wanted = min(self.most, max(1, round(self.share * len(tokens))))
        words = self._words(tokens)
        chosen: list[int] = []
        for number in draw.permutation(len(words)):
            if len(chosen) + len(words[number]) <= wanted:
                chosen.extend(words[number])
            if len(chosen) == wanted:
                break
        if not chosen and words:
            chosen = words[0][:wanted]
        places = np.sort(np.array(chosen, dtype=np.int64))
        kind = draw.random(len(places))
        seen = tokens.copy()
        seen[places[kind < MASKED]] = self.mask_token_id
        replaced = places[kind >= MASKED + KEPT]
        seen[replaced] = draw.choice(self._ordinary, len(replaced))
        return seen, places

    def _words(self, tokens: np.ndarray) -> list[list[int]]:
        """The positions of each word's pieces."""
        words: list[list[int]] = []
        for place in np.flatnonzero(~self._special[tokens]).tolist():
            if words and self._later[tokens[place]] and words[-1][-1] == place - 1:
                words[-1].append(place)
            else:
                words.append([place])
        return words
