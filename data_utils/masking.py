"""Which tokens of a sequence a masked language model has to tell, and what stands in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MASKED, KEPT = 0.8, 0.1  # shares of the chosen tokens; the rest become random tokens
LATER_PIECE = "##"  # how WordPiece begins all pieces of a word but the first


class Masker:
    """Masks whole words of sequences of token ids [Devlin et al. 2019, section 3.1], drawn anew in every call.

    Of a tokenizer other than WordPiece, whose pieces do not tell where a word begins, every piece is a word.

    Args:
        tokenizer: of the encoder.
        words: size of the encoder's vocabulary.
        share: of the tokens of a sequence that are chosen.
        most: at most so many a sequence.

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
        self._special = np.ones(words, bool)  # rows of the word table that no token has are never drawn
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
            draw: what is chosen depends on it and on the tokens alone.

        Returns:
            The tokens that the model sees, (tokens,), and the places of those that it has to tell, in order: at least
            one where there is any word, and of a word all pieces, but where a single word is more than may be chosen.
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
        """The places of the pieces of each word."""
        words: list[list[int]] = []
        for place in np.flatnonzero(~self._special[tokens]).tolist():
            if words and self._later[tokens[place]] and words[-1][-1] == place - 1:
                words[-1].append(place)
            else:
                words.append([place])
        return words
