"""Vocabularies: tokens and their indices."""

from __future__ import annotations

from collections.abc import Sequence

PADDING = "<PAD>"
UNKNOWN = "<UNK>"


class Vocabulary:
    """Tokens numbered in the order in which they were added.

    Checkpoints of MT-DNN hold objects of this class, so its name and its three attributes are a file format.

    Args:
        neat: hold only added tokens, as for labels. Otherwise the padding token and the unknown token come first, and
            a token that was never added has the index of the unknown token.

    Attributes:
        neat: the argument.
        tok2ind: index of each token.
        ind2tok: token of each index.
    """

    def __init__(self, neat: bool = False):
        self.neat = neat
        self.tok2ind: dict[str, int] = {}
        self.ind2tok: dict[int, str] = {}
        if not neat:
            self.add(PADDING)
            self.add(UNKNOWN)

    @classmethod
    def from_labels(cls, labels: Sequence[str]) -> Vocabulary:
        """The vocabulary of a task's labels; the position of a label is its index."""
        vocabulary = cls(neat=True)
        for label in labels:
            vocabulary.add(label)
        return vocabulary

    def add(self, token: str) -> int:
        """Add a token if it is new; returns its index."""
        index = self.tok2ind.setdefault(token, len(self.tok2ind))
        self.ind2tok[index] = token
        return index

    def __len__(self) -> int:
        return len(self.tok2ind)

    def __contains__(self, token: object) -> bool:
        return token in self.tok2ind

    def __getitem__(self, token: str) -> int:
        """The index of `token`.

        Raises:
            KeyError: a neat vocabulary does not hold it.
        """
        return self.tok2ind[token] if self.neat else self.tok2ind.get(token, self.tok2ind[UNKNOWN])

    def __repr__(self) -> str:
        return f"Vocabulary({list(self.tok2ind)})"
