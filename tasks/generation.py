"""Text that answers a text, written by an encoder-decoder such as T5 or BART."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_utils.errors import DataError, UserError
from data_utils.metrics import CLASS_METRICS, Metric, calc_metrics
from data_utils.prepro import Line, Split, Tokenization, parse_list
from data_utils.squad_metrics import squad_v1, squad_v2
from data_utils.task_def import DataFormat, LossCriterion
from tasks.base import Task
from tasks.interfaces import Batch, Criterion, Examples, Network
from tasks.registry import register_task
from tasks.table_rows import as_list, as_text
from tasks.values import Answer, Entries, ModelInputs, Values, check_texts

NO_TOKEN = -1  # the label where a shorter text has ended
NO_ANSWER = "no answer"  # the text to write if a question has no answer
OF_NUMBERS = (Metric.F1, Metric.F1MAC, Metric.F1MIC, Metric.MCC, Metric.Pearson, Metric.Spearman)
METRICS = (Metric.ACC, Metric.EmF1, Metric.EmF12, *OF_NUMBERS)
NO_NUMBER = -1.0  # the value of a text that is not a number


@register_task("SeqenceGeneration")
class SequenceGenerationTask(Task):
    """Writes a text for a sentence, for a pair, or for a question and its context; `n_class` has no meaning.

    A label is what the decoder reads and writes: a start token, the text's tokens, and the token that ends it. `bert`
    is both encoder and decoder, and there is no head. Noise enters at the encoder's word embeddings.
    """

    default_loss = LossCriterion.SeqCeCriterion
    data_formats: tuple[DataFormat, ...] = (
        DataFormat.PremiseOnly,
        DataFormat.PremiseAndOneHypothesis,
        DataFormat.CLUE_GEN,
    )
    many_labels = True
    metrics = METRICS
    pads = False
    generates = True
    answer_parts = ("probability",)
    view = "next_tokens"

    @classmethod
    def mistakes(cls, entry: Mapping[Any, Any]) -> list[str]:
        found, names = entry.get("metric_meta"), [metric.name for metric in METRICS]
        wrong = isinstance(found, list) and set(map(str, found)) - set(names)
        accepted = f"a list of {', '.join(names)} for {entry.get('task_type')}"
        return [f"key 'metric_meta': found {found}, accepted: {accepted}"] if wrong else []

    # text

    def tokenize(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        start = text.tokenizer.pad_token_id  # T5 starts with it; `y_input_ids` takes what the model starts with
        if start is None:
            raise UserError(f"--model: the tokenizer of {text.spec.name} has no padding token, which generation needs")
        texts: list[Any] = []
        answers: list[str | None] = []
        for number, fields in lines:
            columns = ("context", "question") if "question" in fields else ("premise", "hypothesis")
            parts = [fields[column] for column in columns if column in fields]
            texts.append(parts[0] if len(parts) == 1 else tuple(parts))
            answers.append(self._answer(split, number, fields))
        targets = [encoded["token_id"] for encoded in text.encode([answer or NO_ANSWER for answer in answers])]
        sources = text.encode(texts)
        for (_, fields), answer, target, encoded in zip(lines, answers, targets, sources, strict=True):
            known = {} if answer is None else {"label": [start, *target], "answer": answer}
            yield {"uid": fields["uid"], **known, **encoded}

    def _answer(self, split: Split, number: int, fields: Mapping[str, str]) -> str | None:
        """The reference text: empty if a question has no answer, None if the line has no label.

        Several answers become one text, in the order of the context, as in MT-DNN.
        """
        told = fields.get("answers", fields.get("label", ""))
        if not told:
            if split.is_train:
                raise DataError("found no text to learn; a training example needs one", split.path, number)
            return None
        if "answers" not in fields:
            return told
        answers = parse_list(split, number, "answers", told)
        return ", ".join(sorted(answers, key=fields["context"].find))

    # token file

    @property
    def accepted_labels(self) -> str:
        return "lists of at least two token ids, the first of which starts the decoder"

    def accepts_label(self, label: Any, lengths: Sequence[int]) -> bool:
        if not isinstance(label, list) or len(label) < 2:
            return False
        return all(type(token) is int and 0 <= token < 1 << 32 for token in label)

    # batch

    def collate_labels(self, labels: Sequence[Any], width: int) -> Tensor:
        """(examples, tokens of the longest label); -1 after the end of shorter ones."""
        longest = max(map(len, labels))
        padded = np.full((len(labels), longest), NO_TOKEN, dtype=np.int64)
        for row, own in enumerate(labels):
            padded[row, : len(own)] = own
        return torch.from_numpy(padded)

    def y_input_ids(self, batch: Batch) -> Tensor | None:
        """What the decoder reads, (examples, tokens): its start token, then all but the last token of the text."""
        if batch.labels is None:
            return None
        read = batch.labels[:, :-1]
        read = torch.where(read == NO_TOKEN, self._padding, read)
        read[:, 0] = self._start
        return read

    def _written(self, batch: Batch) -> Tensor:
        """What the decoder should write at each place, (examples, tokens); -1 after the end of a text."""
        assert batch.labels is not None
        written = batch.labels[:, 1:]
        return torch.where(written == self._padding, NO_TOKEN, written)

    @property
    def _padding(self) -> int:
        return self.opt.get("pad_token_id") or 0

    @property
    def _start(self) -> int:
        start = self.opt.get("decoder_start_token_id")
        return self._padding if start is None else start

    # network

    def build_head(self, hidden_size: int, dropout_p: float) -> nn.Module:
        """No head: the decoder's own language-model head gives the scores."""
        return nn.Identity()

    def forward(self, network: Network, head: nn.Module, inputs: ModelInputs) -> Tensor:
        """Scores of all words at each place of the text, (examples, tokens, words)."""
        output = network.bert(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            decoder_input_ids=inputs.y_input_ids,
            use_cache=False,
        )
        return output.logits

    # loss

    def loss(self, criterion: Criterion, logits: Tensor, batch: Batch) -> Tensor:
        """The mean over all tokens of the batch's texts."""
        return criterion(logits.flatten(0, 1), self._written(batch).flatten())

    def counted(self, batch: Batch) -> Tensor | None:
        return None if batch.labels is None else self._written(batch) != NO_TOKEN

    # evaluation

    def infer(self, network: Network, batch: Batch) -> tuple[Values, Values]:
        """The log-probability of each generated text, (examples,), and the texts."""
        bert: Any = network.bert
        found = bert.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=self.opt.get("max_answer_len", 10),
            num_beams=self.opt.get("num_beams", 1),
            do_sample=False,
            decoder_start_token_id=self._start,
            return_dict_in_generate=True,
            output_scores=True,
        )
        beams = getattr(found, "beam_indices", None)
        steps = bert.compute_transition_scores(found.sequences, found.scores, beams, normalize_logits=True)
        tokens = found.sequences[:, 1:][:, : steps.size(1)]
        is_end = torch.isin(tokens, torch.tensor(bert.generation_config.eos_token_id, device=tokens.device))
        within = is_end.cumsum(1) - is_end.long() == 0  # up to the token that ends the text
        scores = steps.float().masked_fill(~within, 0.0).sum(1).cpu().numpy()
        texts = self.tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
        return scores, [self._shown(text.strip()) for text in texts]

    def _shown(self, text: str) -> str:
        """An empty text instead of the text for no answer."""
        return "" if self.task_def.data_type == DataFormat.CLUE_GEN and text == NO_ANSWER else text

    def golds(self, dataset: Examples) -> Any:
        found = []
        for number, sample in enumerate(dataset.samples(), start=1):
            if sample.get("answer") is None and "tokenizer" not in self.opt:
                raise DataError("found no answer, the text that its label stands for", dataset.path, number)
            found.append(self._reference(sample))
        return found

    def measure(self, metrics: Sequence[Metric], golds: Any, entries: Entries) -> dict[str, float]:
        """ACC: share of equal texts; EmF1 and EmF12 as in SQuAD; others treat the texts as numbers."""
        predictions = list(entries.predictions)
        found: dict[str, float] = {}
        for metric in metrics:
            if metric == Metric.EmF1:
                found |= squad_v1([[gold] for gold in golds], predictions)
            elif metric == Metric.EmF12:
                found |= squad_v2([[gold] if gold else [] for gold in golds], predictions)
            elif metric in OF_NUMBERS:
                found |= metrics_of_numbers(metric, golds, predictions)
            else:
                found |= calc_metrics([metric], golds, predictions, entries.scores)
        return found

    def shapes_of_scores(self, predictions: Sequence[Any], golds: Any) -> list[tuple[int, ...]]:
        check_texts(predictions)
        return [()] * len(predictions)

    def _reference(self, sample: Mapping[str, Any]) -> str:
        """The `answer` of a line of a token file; in MT-DNN's files it is the first text of a list."""
        answer = sample.get("answer")
        if isinstance(answer, Mapping):
            answer = answer.get("text")
        if isinstance(answer, list):
            answer = answer[0] if answer else ""
        if answer is None:
            (answer,) = self.tokenizer.batch_decode([sample["label"]], skip_special_tokens=True)
        return self._shown(str(answer).strip())

    def answers(self, scores: Values, predictions: Values) -> list[str | int | float]:
        """The texts."""
        return list(predictions)

    def label_fields(self, fields: Mapping[str, Any], label: Any) -> dict[str, Any]:
        """The right text; for a question and its context also a list of answers."""
        if self.task_def.data_type != DataFormat.CLUE_GEN:
            return {"label": as_text(label)}
        found = as_list(label)
        return {"answers": json.dumps([as_text(own) for own in ([label] if found is None else found)])}

    def readable(self, dataset: Examples, scores: Values, predictions: Values) -> list[Answer]:
        """The generated texts, each with its probability."""
        return [Answer(text, math.exp(score)) for text, score in zip(predictions, scores, strict=True)]


def metrics_of_numbers(metric: Metric, golds: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """A metric of classes or of a regression, if the texts are numbers, such as GLUE's labels as text.

    A text that is not a number counts as -1; so does a fraction if classes are compared. F1 knows only the classes 0
    and 1, so any other value counts as the wrong class.

    Raises:
        UserError: a reference is not a number, or is a fraction if classes are compared.
    """
    right, found = ([_number(text) for text in texts] for texts in (golds, predictions))
    if None in right:
        shown = golds[right.index(None)]
        raise UserError(f"metric {metric.name} is of numbers; found the reference {shown!r}; accepted: {_OF_TEXTS}")
    values = np.array([NO_NUMBER if number is None else number for number in found])
    gold = np.array(right, dtype=np.float64)
    if metric in CLASS_METRICS:
        values = np.where(values % 1 == 0, values, NO_NUMBER)
    if metric == Metric.F1:
        values = np.where(np.isin(values, (0, 1)), values, 1 - gold)
    return calc_metrics([metric], gold, values, values)


_OF_TEXTS = ", ".join(metric.name for metric in METRICS if metric not in OF_NUMBERS)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


@register_task("SeqenceGenerationMRC")
class SequenceGenerationMRCTask(SequenceGenerationTask):
    """Answers to questions about a context, in words that need not be in it."""

    data_formats = (DataFormat.PremiseAndOneHypothesis, DataFormat.CLUE_GEN)
