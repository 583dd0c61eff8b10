"""A text with a gap and several choices to fill it, as in ReCoRD. Each hypothesis is the text with one choice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_utils.errors import DataError
from data_utils.metrics import CLASS_METRICS, Metric
from data_utils.prepro import Split, parse_list
from data_utils.squad_metrics import squad_v1
from data_utils.task_def import DataFormat
from tasks.interfaces import Examples
from tasks.ranking import RankingTask, all_gold_candidates, one_at, ranking_metrics
from tasks.registry import register_task
from tasks.table_rows import SHOWN, as_list, as_text
from tasks.values import Entries, Values, check_texts


@register_task("ClozeChoice")
class ClozeChoiceTask(RankingTask):
    """Ranking of choices. `choice` lists the texts to choose from, `answer` the texts that are right.

    A score file has one entry for each question: the prediction is the chosen text, the scores are the choices'
    probabilities. EmF1 is the mean F1 between the words of the chosen text and of an answer; it comes with EmF1_exact,
    the share of chosen texts that are an answer. Both are computed as in SQuAD's evaluation. Other metrics are those of
    ranking.
    """

    data_formats = (DataFormat.ClozeChoice,)
    metrics = (Metric.EmF1, *CLASS_METRICS)

    def about_candidates(self, split: Split, number: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The line's lists of choices and answers."""
        choices = parse_list(split, number, "choice", fields["choice"])
        parse_list(split, number, "answer", fields["answer"])
        count = len(fields["hypotheses"])
        if len(choices) != count:
            message = f"expected as many choices as hypotheses, found {len(choices)} and {count}"
            raise DataError(message, split.path, number)
        return {"choice": fields["choice"], "answer": fields["answer"]}

    def uids(self, dataset: Examples) -> Sequence[str]:
        """One for each question."""
        return dataset.uids

    def entries(self, dataset: Examples, scores: Values, predictions: Values) -> Entries:
        """The texts that were chosen."""
        choices = self._texts(dataset, "choice")
        chosen = [own[int(best.argmax())] for own, best in zip(choices, predictions, strict=True)]
        return Entries(dataset.uids, chosen, scores)

    def golds(self, dataset: Examples) -> Any:
        """For each question the right texts, and an array (choices,) with 1 at the right choices, 0 elsewhere."""
        return list(zip(self._texts(dataset, "answer"), all_gold_candidates(dataset), strict=True))

    def measure(self, metrics: Sequence[Metric], golds: Any, entries: Entries) -> dict[str, float]:
        """EmF1 of the chosen texts; other metrics as in ranking."""
        found: dict[str, float] = {}
        for metric in metrics:
            if metric == Metric.EmF1:
                found |= squad_v1([texts for texts, _ in golds], list(entries.predictions))
            else:
                best = [one_at(int(own.argmax()), len(own)) for own in entries.scores]
                found |= ranking_metrics([metric], [right for _, right in golds], entries.scores, best)
        return found

    def shapes_of_scores(self, predictions: Sequence[Any], golds: Any) -> list[tuple[int, ...]]:
        check_texts(predictions)
        return [(len(right),) for _, right in golds]

    def answers(self, scores: Values, predictions: Values) -> list[str | int | float]:
        """The texts."""
        return list(predictions)

    def label_fields(self, fields: Mapping[str, Any], label: Any) -> dict[str, Any]:
        """The right choice, or a list of those that are right."""
        choices, right = json.loads(fields["choice"]), as_list(label)
        right = [as_text(own) for own in ([label] if right is None else right)]
        relevances = [int(choice in right) for choice in choices]
        if not any(relevances):
            raise ValueError(
                f"found {', '.join(right)[:SHOWN]!r}, accepted: one of the row's choices, or a list of them"
            )
        return {"answer": json.dumps(right), "label": ",".join(map(str, relevances))}

    def _candidates(self, dataset: Examples) -> Iterator[list[str]]:
        return self._texts(dataset, "choice")

    def _texts(self, dataset: Examples, key: str) -> Iterator[list[str]]:
        """The lists under a key of a token file, which has them as text."""
        split = Split(dataset.path, self, is_train=False)
        for number, sample in enumerate(dataset.samples(), start=1):
            texts = parse_list(split, number, key, str(sample.get(key)))
            if key == "choice" and len(texts) != len(sample["token_id"]):
                message = f"choice must be a list of as many texts as token_id has sequences, found {len(texts)}"
                raise DataError(message, dataset.path, number)
            yield texts
