"""The best of several candidates, such as the answers to a question."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from data_utils.errors import DataError
from data_utils.metrics import CLASS_METRICS, Metric, calc_metrics
from data_utils.prepro import Line, Split, Tokenization
from data_utils.task_def import DataFormat, LossCriterion
from tasks.base import Task, class_index
from tasks.interfaces import Batch, Criterion, Examples
from tasks.registry import register_task
from tasks.table_rows import SHOWN, as_list, as_text
from tasks.values import Answer, Entries, Values, check_classes

NO_CANDIDATE = -1e4  # the logit of a candidate that a smaller group lacks: no probability, and finite in half precision
LARGEST = float(np.finfo(np.float64).max)


@register_task("Ranking")
class RankingTask(Task):
    """A score for each candidate of a group: a premise with several hypotheses, one of which is right.

    The probabilities of a group sum to 1. A score file has one entry for each candidate: its id (`ruid`), its
    probability, and the prediction 1 if it is the best of its group, else 0. The metric ACC is the share of groups
    whose best candidate is right. All other metrics are over candidates, with class 1 for right ones and 0 for others.
    """

    default_loss = LossCriterion.RankCeCriterion
    metrics: tuple[Metric, ...] = CLASS_METRICS
    data_formats = (DataFormat.PremiseAndMultiHypothesis,)
    many_rows = True
    distils = True
    answer_parts = ("probability", "items")
    view = "groups"

    @classmethod
    def mistakes(cls, entry: Mapping[Any, Any]) -> list[str]:
        n_class = entry.get("n_class")
        wrong = type(n_class) is int and n_class != 1
        return [f"key 'n_class': found {n_class}, accepted: 1, the score of a candidate"] if wrong else []

    def tokenize(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        pairs = [(fields["premise"], hypothesis) for _, fields in lines for hypothesis in fields["hypotheses"]]
        encoded = text.encode(pairs)
        for number, fields in lines:
            count = len(fields["hypotheses"])
            about = self.about_candidates(split, number, fields)
            label = {}
            if fields["label"] or split.is_train:
                about["olabel"] = self.relevances(split, number, fields["label"], count)
                label["label"] = about["olabel"].index(max(about["olabel"]))
            rows = list(itertools.islice(encoded, count))
            yield {"uid": fields["uid"], **label, **{key: [row[key] for row in rows] for key in rows[0]}, **about}

    def about_candidates(self, split: Split, number: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What a token file has about a line's candidates, in addition to their tokens.

        Raises:
            DataError: it does not fit the candidates.
        """
        ruids = fields["ruid"].split(",")
        _check_count("ids (ruid)", len(ruids), len(fields["hypotheses"]), split, number)
        return {"ruid": ruids}

    def relevances(self, split: Split, number: int, text: str, count: int) -> list[float]:
        """A line's label: a relevance for each of `count` candidates, as numbers or names of the definition's labels.

        If several relevances are the largest, the model learns the first.

        Raises:
            DataError: not as many finite numbers as candidates, or none marks a candidate as right.
        """
        parts = [part.strip() for part in text.strip("[] ").split(",")]
        _check_count("relevances", len(parts), count, split, number)
        if self.task_def.label_vocab is not None:
            found = [float(class_index(self.task_def, split, number, part)) for part in parts]
        else:
            found = [_number(part) for part in parts]
        if not all(math.isfinite(relevance) for relevance in found):
            raise DataError(f"found the label {text!r}; accepted: finite numbers such as 0,1,0", split.path, number)
        if count > 1 and min(found) == max(found) <= 0:
            raise DataError(f"found the label {text!r}, which makes no candidate the gold", split.path, number)
        return found

    @property
    def accepted_labels(self) -> str:
        return "the index of one of the example's sequences"

    def accepts_label(self, label: Any, lengths: Sequence[int]) -> bool:
        return type(label) is int and 0 <= label < len(lengths)

    def loss(self, criterion: Criterion, logits: Tensor, batch: Batch) -> Tensor:
        """The mean over groups."""
        assert batch.labels is not None
        parts = list(logits.flatten().split(list(batch.groups)))
        groups = nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=NO_CANDIDATE)
        return criterion(groups, batch.labels)

    def predict(self, logits: Tensor, batch: Batch) -> tuple[Values, Values]:
        """For each group the probabilities, (candidates,), and an array with 1 at the best candidate, 0 elsewhere."""
        parts = logits.float().flatten().split(list(batch.groups))
        scores = [part.softmax(-1).cpu().numpy() for part in parts]
        return scores, [one_at(own.argmax(), len(own)) for own in scores]

    def uids(self, dataset: Examples) -> Sequence[str]:
        """One for each candidate."""
        samples = enumerate(dataset.samples(), start=1)
        return [uid for number, sample in samples for uid in _candidate_ids(sample, dataset, number)]

    def entries(self, dataset: Examples, scores: Values, predictions: Values) -> Entries:
        return Entries(self.uids(dataset), np.concatenate(predictions), np.concatenate(scores))

    def golds(self, dataset: Examples) -> Any:
        """For each group an array (candidates,) with 1 at the most relevant candidates, 0 elsewhere."""
        return all_gold_candidates(dataset)

    def measure(self, metrics: Sequence[Metric], golds: Any, entries: Entries) -> dict[str, float]:
        """ACC over groups, other metrics over candidates."""
        bounds = np.cumsum([len(own) for own in golds])[:-1]
        groups = [np.split(np.asarray(values), bounds) for values in (entries.scores, entries.predictions)]
        return ranking_metrics(metrics, golds, *groups)

    def shapes_of_scores(self, predictions: Sequence[Any], golds: Any) -> list[tuple[int, ...]]:
        check_classes(predictions, 2)  # a candidate is the best one or not
        return [()] * len(predictions)

    def tokenize_texts(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        """With the candidates' texts."""
        for (_, fields), example in zip(lines, self.tokenize(split, lines, text), strict=True):
            yield example | {"candidates": fields["hypotheses"]}

    def label_fields(self, fields: Mapping[str, Any], label: Any) -> dict[str, Any]:
        """The text of the right candidate, its number from 0, or a list with a relevance for each candidate."""
        candidates, relevances = fields["hypotheses"], as_list(label)
        if relevances is None:
            text = as_text(label)
            place = candidates.index(text) if text in candidates else _number(text)
            if place not in range(len(candidates)):
                raise ValueError(
                    f"found {text[:SHOWN]!r}, accepted: one of the row's candidates, its number from 0 to "
                    f"{len(candidates) - 1}, or a list with a relevance for each"
                )
            relevances = one_at(int(place), len(candidates)).tolist()
        return {"label": ",".join(map(str, relevances))}

    def readable(self, dataset: Examples, scores: Values, predictions: Values) -> list[Answer]:
        """The best candidate's text; `probabilities` has those of all candidates, in order."""
        return [
            Answer(texts[int(own.argmax())], float(own.max()), own.tolist())
            for texts, own in zip(self._candidates(dataset), scores, strict=True)
        ]

    def _candidates(self, dataset: Examples) -> Iterator[list[str]]:
        """For each example the candidates' texts."""
        return (sample["candidates"] for sample in dataset.samples())


def gold_candidates(sample: Mapping[str, Any], path: Path, number: int) -> np.ndarray:
    """An array (candidates,) with 1 at the most relevant candidates of a token file's example, 0 elsewhere.

    Raises:
        DataError: the relevances (`olabel`) are not one number for each candidate.
    """
    count, given = len(sample["token_id"]), sample.get("olabel")
    if given is None:
        return one_at(sample["label"], count)
    if not isinstance(given, list) or len(given) != count or not all(map(_is_relevance, given)):
        raise DataError(f"olabel must be a list of {count} finite numbers", path, number)
    relevances = np.asarray(given, dtype=np.float64)
    return (relevances == relevances.max()).astype(np.int64)


def all_gold_candidates(dataset: Examples) -> list[np.ndarray]:
    """`gold_candidates` of every example of a token file."""
    samples = enumerate(dataset.samples(), start=1)
    return [gold_candidates(sample, dataset.path, number) for number, sample in samples]


def ranking_metrics(
    metrics: Sequence[Metric], golds: Sequence[np.ndarray], scores: Values, predictions: Values
) -> dict[str, float]:
    """Metrics of groups: ACC over groups, others over candidates. Arguments have an array (candidates,) a group."""
    flat = np.concatenate(scores)
    by_candidate = (np.concatenate(golds), np.concatenate(predictions), np.stack([1 - flat, flat], axis=1))
    right = np.array([int(gold @ best) for gold, best in zip(golds, predictions, strict=True)])
    by_group = (np.ones_like(right), right, right)
    return {
        name: value
        for metric in metrics
        for name, value in calc_metrics([metric], *(by_group if metric == Metric.ACC else by_candidate)).items()
    }


def _check_count(what: str, found: int, hypotheses: int, split: Split, number: int) -> None:
    if found != hypotheses:
        raise DataError(f"expected as many {what} as hypotheses, found {found} and {hypotheses}", split.path, number)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_relevance(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST  # type: ignore[arg-type]


def one_at(place: int, count: int) -> np.ndarray:
    return (np.arange(count) == place).astype(np.int64)


def _candidate_ids(sample: Mapping[str, Any], dataset: Examples, number: int) -> list[str]:
    """The ids of the candidates of a token file's line; the example's own id for each if the file has no others."""
    count = len(sample["token_id"])
    ruids = sample.get("ruid", [sample["uid"]] * count)
    if not isinstance(ruids, list) or len(ruids) != count:
        raise DataError(f"ruid must be a list of as many ids as token_id has sequences ({count})", dataset.path, number)
    return [str(ruid) for ruid in ruids]
