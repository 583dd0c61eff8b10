"""A label for each word of a sentence, such as the names in it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_utils.errors import DataError, UserError
from data_utils.metrics import CLASS_METRICS, ENTITY_METRICS, Metric, calc_metrics, entities, metrics_of_classes
from data_utils.prepro import CUT_ENTITIES, CUT_WORDS, EMPTY_WORDS, WORDS, Line, Split, Tokenization, parse_list
from data_utils.task_def import DataFormat, LossCriterion
from module.token_head import token_head
from tasks.base import Task, class_index
from tasks.interfaces import Batch, Criterion, Examples
from tasks.registry import register_task
from tasks.table_rows import SHOWN, words_of
from tasks.values import Answer, Entries, Values, check_classes

LATER_PIECE, FIRST, LAST = "X", "CLS", "SEP"  # labels of all pieces of a word but the first, and of special tokens
NO_ENTITY = "O"
NOT_COUNTED = -1  # the label of padding
CUT_LABEL = "cut_label"  # in a token file: the labels of words that no token stands for, which metrics count as missed
FIRST_CUT = -2  # in a dataset the label i of such a word is FIRST_CUT - i, after the labels of the tokens


@register_task("SeqenceLabeling")
class SequenceLabelingTask(Task):
    """One of `n_class` labels for each token: a word's first piece has the word's label, other pieces have `X`."""

    default_loss = LossCriterion.SeqCeCriterion
    data_formats = (DataFormat.Seqence,)
    metrics = (*CLASS_METRICS, *ENTITY_METRICS)
    many_labels = True
    pads = False
    distils = True
    answer_parts: tuple[str, ...] = ("probability", "items")
    view = "tokens"

    @classmethod
    def mistakes(cls, entry: Mapping[Any, Any]) -> list[str]:
        labels, n_class = entry.get("labels"), entry.get("n_class")
        if isinstance(labels, list) and type(n_class) is int and len(labels) > n_class:
            return [f"key 'labels': found {len(labels)} labels, accepted: at most n_class ({n_class})"]
        return []

    @classmethod
    def metrics_of(cls, n_class: int, named: bool) -> tuple[Metric, ...]:
        return (*metrics_of_classes(n_class), *(ENTITY_METRICS if named else ()))

    def check_text(self, where: str) -> None:
        super().check_text(where)
        labels = self.task_def.label_vocab
        missing = [label for label in (LATER_PIECE, FIRST, LAST) if labels is None or label not in labels]
        if missing:
            raise UserError(f"{where}: labels lack {', '.join(missing)}; a SeqenceLabeling task needs X, CLS and SEP")

    def check_tokenization(self, text: Tokenization) -> None:
        text.ends()

    def tokenize(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        labels, (begin, end) = self.task_def.label_vocab, text.ends()
        assert labels is not None  # `check_text` has seen to it
        for number, fields in lines:
            words = parse_list(split, number, "premise", fields["premise"])
            if not fields["label"] and not split.is_train:
                yield self._unlabeled(fields["uid"], self._ids(words, text, number), text)
                continue
            texts = parse_list(split, number, "label", fields["label"])
            if len(words) != len(texts):
                found = f"{len(words)} words and {len(texts)} labels"
                raise DataError(f"expected one label a word, found {found}", split.path, number)
            ids = self._ids(words, text, number)
            token_id: list[int] = []
            label: list[int] = []
            cut: list[int] = []
            room = text.spec.max_seq_len - 2
            for word, name in zip(ids, texts, strict=True):
                index = class_index(self.task_def, split, number, name)
                if not word or len(token_id) >= room:
                    cut.append(index)
                token_id += word
                label += [index, *[labels[LATER_PIECE]] * (len(word) - 1)][: len(word)]
            kept = len(words) - len(cut)
            text.losses.add(WORDS, len(words))
            text.losses.add(CUT_WORDS, len(cut), number)
            text.losses.add(CUT_ENTITIES, sum(end >= kept for _, _, end in entities(texts)), number)
            token_id = [begin, *token_id[:room], end]
            label = [labels[FIRST], *label[:room], labels[LAST]]
            example = {"uid": fields["uid"], "label": label, "token_id": token_id, "type_id": [0] * len(token_id)}
            yield example | ({CUT_LABEL: cut} if cut else {})

    def _unlabeled(self, uid: str, ids: Sequence[Sequence[int]], text: Tokenization) -> dict[str, Any]:
        """An example without labels, of the tokens of each word."""
        begin, end = text.ends()
        token_id = [begin, *[token for word in ids for token in word][: text.spec.max_seq_len - 2], end]
        return {"uid": uid, "token_id": token_id, "type_id": [0] * len(token_id)}

    def _ids(self, words: Sequence[str], text: Tokenization, line: int) -> list[list[int]]:
        """The tokens of each word; the unknown token for a word that has none, such as a blank of no width."""
        ids = [piece.ids for piece in text.pieces(words)]
        unknown = text.tokenizer.unk_token_id
        text.losses.add(EMPTY_WORDS, sum(not word for word in ids), line)
        return ids if unknown is None else [word or [unknown] for word in ids]

    @property
    def accepted_labels(self) -> str:
        return f"a list of integers from 0 to {self.task_def.n_class - 1}, one a token"

    def accepts_label(self, label: Any, lengths: Sequence[int]) -> bool:
        if not isinstance(label, list) or len(label) != lengths[0]:
            return False
        return all(type(index) is int and 0 <= index < self.task_def.n_class for index in label)

    def read_label(self, sample: Mapping[str, Any]) -> list[int]:
        """The labels of the tokens, and of words without a token."""
        cut = sample.get(CUT_LABEL, [])
        if not isinstance(cut, list) or not all(
            type(index) is int and 0 <= index < self.task_def.n_class for index in cut
        ):
            raise ValueError(f"{CUT_LABEL} must be a list of integers from 0 to {self.task_def.n_class - 1}")
        return sample["label"] + [FIRST_CUT - index for index in cut]

    def soft_count(self, lengths: Sequence[int]) -> int:
        """`n_class` for each token."""
        return self.task_def.n_class * lengths[0]

    def taught_label(self, scores: np.ndarray) -> list[int]:
        return scores.reshape(-1, self.task_def.n_class).argmax(-1).tolist()

    def collate_soft_labels(self, soft: Sequence[np.ndarray], width: int) -> Tensor:
        """(examples, width, n_class); 0 at padding."""
        padded = torch.zeros(len(soft), width, self.task_def.n_class)
        for row, own in enumerate(soft):
            by_token = torch.from_numpy(own.copy()).view(-1, self.task_def.n_class)
            padded[row, : len(by_token)] = by_token
        return padded

    def collate_labels(self, labels: Sequence[Any], width: int) -> Tensor:
        """(examples, width); -1 at padding."""
        padded = np.full((len(labels), width), NOT_COUNTED, dtype=np.int64)
        for row, own in enumerate(labels):
            of_tokens, _ = _divided(own)
            padded[row, : len(of_tokens)] = of_tokens
        return torch.from_numpy(padded)

    def build_head(self, hidden_size: int, dropout_p: float) -> nn.Module:
        """A projection of each token."""
        own = self.task_def.dropout_p
        return token_head(hidden_size, self.task_def.n_class, dropout_p if own is None else own)

    def loss(self, criterion: Criterion, logits: Tensor, batch: Batch) -> Tensor:
        """The mean over all real tokens of the batch."""
        assert batch.labels is not None
        return criterion(logits.flatten(0, 1), batch.labels.flatten())

    def counted(self, batch: Batch) -> Tensor | None:
        return batch.attention_mask.bool()

    def predict(self, logits: Tensor, batch: Batch) -> tuple[Values, Values]:
        """For each example probabilities (tokens, n_class) and label indices (tokens,), without padding."""
        lengths = batch.attention_mask.sum(1).tolist()
        scores = logits.float().softmax(-1).cpu().numpy()
        kept = [row[:length] for row, length in zip(scores, lengths, strict=True)]
        return kept, [row.argmax(-1) for row in kept]

    def measure(self, metrics: Sequence[Metric], golds: Any, entries: Entries) -> dict[str, float]:
        """Metrics over words, or over entities. Pieces labelled X and special tokens do not count. A word that was cut
        off has no prediction: it counts as one that the model takes for no entity.

        Raises:
            UserError: a metric over entities, but the labels have no names.
        """
        found: dict[str, float] = {}
        parts: list[list[np.ndarray]] = [[], [], []]
        for gold, predicted, scores in zip(golds, entries.predictions, entries.scores, strict=True):
            of_tokens, cut = _divided(gold)
            words = self._is_word(of_tokens)
            missed = np.full(len(cut), self._missed())
            certain = np.eye(self.task_def.n_class)[missed]
            for part, own, more in zip(parts, (of_tokens, predicted, scores), (cut, missed, certain), strict=True):
                part.append(np.concatenate([np.asarray(own)[words], more]))
        for metric in metrics:
            if metric in ENTITY_METRICS:
                tags = [[self._tags(metric, sentence) for sentence in sentences] for sentences in parts[:2]]
                found[metric.name] = ENTITY_METRICS[metric](*tags)
            else:
                found |= calc_metrics([metric], *map(np.concatenate, parts))
        return found

    def shapes_of_scores(self, predictions: Sequence[Any], golds: Any) -> list[tuple[int, ...]]:
        for own, gold in zip(predictions, golds, strict=True):
            length = len(_divided(gold)[0])
            if not isinstance(own, list) or len(own) != length:
                raise ValueError(f"found the prediction {own!r}; accepted: {length} labels, as the example has")
            check_classes(own, self.task_def.n_class)
        return [(len(own), self.task_def.n_class) for own in predictions]

    def answers(self, scores: Values, predictions: Values) -> list[str | int | float]:
        """For each example the list of its tokens' labels, by name if they have one, as JSON."""
        labels = self.task_def.label_vocab
        names = {} if labels is None else labels.ind2tok
        return [json.dumps([names.get(index, index) for index in np.asarray(own).tolist()]) for own in predictions]

    def tokenize_texts(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        """Lines with or without labels. `first_pieces` is the place of each word's first token, None without one."""
        room = text.spec.max_seq_len - 2
        for line in lines:
            number, fields = line
            ids = self._ids(parse_list(split, number, "premise", fields["premise"]), text, number)
            example = self._unlabeled(fields["uid"], ids, text)
            if fields["label"]:
                (example,) = self.tokenize(split, [line], text)
            starts = list(itertools.accumulate(map(len, ids), initial=1))[:-1]
            first = [start if word and start <= room else None for start, word in zip(starts, ids, strict=True)]
            yield example | {"first_pieces": first, "cut": sum(map(len, ids)) > room}

    def label_fields(self, fields: Mapping[str, Any], label: Any) -> dict[str, Any]:
        """A label for each word: a list, or a text with blanks between the labels."""
        labels, words = words_of(label), json.loads(fields["premise"])
        if len(labels) != len(words):
            shown = " ".join(labels)[:SHOWN]
            raise ValueError(f"found {shown!r}, {len(labels)} labels of {len(words)} words, accepted: a label a word")
        return {"label": json.dumps(labels)}

    def readable(self, dataset: Examples, scores: Values, predictions: Values) -> list[Answer]:
        """The label of each word, by its first token; None for words that were cut off.

        The labels X, CLS and SEP count as `O`, as in the metrics over entities.
        """
        names, found = self.task_def.class_names(), []
        for sample, own, indices in zip(dataset.samples(), scores, predictions, strict=True):
            labels: list[str | None] = []
            probability: list[float | None] = []
            probabilities: list[dict[str, float] | None] = []
            for place in sample["first_pieces"]:
                known = place is not None
                name = names[int(indices[place])] if known else None
                labels.append(NO_ENTITY if name in (LATER_PIECE, FIRST, LAST) else name)
                probability.append(float(own[place].max()) if known else None)
                probabilities.append(dict(zip(names, own[place].tolist(), strict=True)) if known else None)
            found.append(Answer(labels, probability, probabilities))
        return found

    def _tags(self, metric: Metric, labels: np.ndarray) -> list[str]:
        """A sentence's labels by name; X, CLS, SEP and labels without a name become `O`, which is no entity."""
        vocabulary = self.task_def.label_vocab
        if vocabulary is None:
            raise UserError(f"metric {metric.name} needs the labels' names; give them in the task definition: labels")
        names = [vocabulary.ind2tok.get(int(index), NO_ENTITY) for index in labels]
        return [NO_ENTITY if name in (LATER_PIECE, FIRST, LAST) else name for name in names]

    def _missed(self) -> int:
        """The label that stands for the prediction of a word that was cut off."""
        vocabulary = self.task_def.label_vocab
        names = [] if vocabulary is None else [name for name in (NO_ENTITY, LATER_PIECE) if name in vocabulary]
        return 0 if vocabulary is None or not names else vocabulary[names[0]]

    def _is_word(self, labels: np.ndarray) -> np.ndarray:
        vocabulary = self.task_def.label_vocab
        if vocabulary is None:
            return np.ones(len(labels), bool)
        special = [vocabulary[name] for name in (LATER_PIECE, FIRST, LAST) if name in vocabulary]
        return ~np.isin(labels, special)


def _divided(labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """The labels of tokens, and of words that were cut off, of an example of a dataset."""
    found = np.asarray(labels)
    return found[found >= 0], FIRST_CUT - found[found < 0]
