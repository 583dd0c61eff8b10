"""Masked language modeling: pre-training on plain text, or continuing it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_utils.errors import DataError, FlagError
from data_utils.masking import Masker
from data_utils.metrics import Metric, calc_metrics
from data_utils.prepro import Line, Split, Tokenization
from data_utils.task_def import DataFormat, LossCriterion
from module.encoder import load_masked_lm
from module.mlm_head import MaskLmHead
from tasks.base import Task
from tasks.interfaces import Batch, Criterion, Examples, Network
from tasks.registry import register_task
from tasks.values import Answer, Entries, ModelInputs, Values

logger = logging.getLogger(__name__)

NOT_MASKED = -1  # the label of all other tokens
SHOWN = 60  # characters of a text in a message
SHORTEST = 2  # tokens of a part of a sequence, special ones aside


@register_task("MaskLM")
class MaskLMTask(Task):
    """Predicts masked tokens among all words of the encoder; the definition's `n_class` has no meaning.

    The masked tokens are drawn again in every update, from the run's seed, the update and the sequence's id. There is
    no next-sentence prediction.
    """

    default_loss = LossCriterion.MlmCriterion
    data_formats = (DataFormat.MLM,)
    metrics = (Metric.ACC,)
    own_labels = True
    pads = False
    uses_word_table = True
    answer_parts = ("probability",)
    view = "masked_tokens"

    @classmethod
    def mistakes(cls, entry: Mapping[Any, Any]) -> list[str]:
        found = entry.get("metric_meta")
        wrong = isinstance(found, list) and set(map(str, found)) - {Metric.ACC.name}
        return [f"key 'metric_meta': found {found}, accepted: [ACC] for MaskLM"] if wrong else []

    # text

    def check_tokenization(self, text: Tokenization) -> None:
        text.ends()

    def tokenize(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        """Documents → sequences of as many whole sentences as fit; `uid` is DOCUMENT-SEQUENCE, by their numbers."""
        first, last = text.ends()
        for _, fields in lines:
            sentences = [piece.ids for piece in text.pieces(fields["sentences"])]
            for number, tokens in enumerate(packed(sentences, text.spec.max_seq_len - 2)):
                token_id = [first, *tokens, last]
                yield {"uid": f"{fields['uid']}-{number}", "token_id": token_id, "type_id": [0] * len(token_id)}

    # token file

    @property
    def accepted_labels(self) -> str:
        return "none: the tokens themselves are the labels"

    def accepts_label(self, label: Any, lengths: Sequence[int]) -> bool:
        return False

    # batch

    def prepare(self, batch: Batch, seeds: Sequence[int]) -> Batch:
        """The batch with masked tokens; some sequences are shortened (`--short_seq_prob`)."""
        return self._masked(batch, seeds, self.opt["short_seq_prob"])

    def _masked(self, batch: Batch, seeds: Sequence[int], short_seq_prob: float = 0.0) -> Batch:
        """The masked batch, with the masked tokens as labels, (rows, tokens), -1 elsewhere."""
        input_ids = np.full(batch.input_ids.shape, self.masker.pad_token_id)
        labels = np.full_like(input_ids, NOT_MASKED)
        mask, types = np.zeros_like(input_ids), np.zeros_like(input_ids)
        lengths = batch.attention_mask.sum(1).tolist()
        for row, (length, seed) in enumerate(zip(lengths, seeds, strict=True)):
            draw = np.random.default_rng(seed)
            tokens = batch.input_ids[row, :length].cpu().numpy()
            kept = np.arange(length)
            if short_seq_prob and length - 2 > SHORTEST and draw.random() < short_seq_prob:
                kept = part_of(length, draw)
            seen, places = self.masker(tokens[kept], draw)
            input_ids[row, : len(kept)] = seen
            labels[row, places] = tokens[kept][places]
            mask[row, : len(kept)] = 1
            types[row, : len(kept)] = batch.token_type_ids[row, :length].cpu().numpy()[kept]
        device = batch.input_ids.device
        new = [torch.from_numpy(array).to(device) for array in (input_ids, mask, types, labels)]
        masked = replace(batch, input_ids=new[0], attention_mask=new[1], token_type_ids=new[2], labels=new[3])
        return replace(masked, padded=None)  # a shortened sequence has padding that it had not

    @cached_property
    def masker(self) -> Masker:
        share, most = self.opt["masked_lm_prob"], self.opt["max_predictions_per_seq"]
        try:
            return Masker(self.tokenizer, self.opt["vocab_size"], share, most)
        except ValueError as error:
            raise FlagError(f"MaskLM: {error}; accepted: --tokenizer of a masked language model") from error

    def y_input_ids(self, batch: Batch) -> Tensor | None:
        """The labels: scores are computed only for masked tokens."""
        return batch.labels

    # network

    def build_head(self, hidden_size: int, dropout_p: float) -> nn.Module:
        """Its keys in a checkpoint are `dense.*`, `norm.*` and `bias`."""
        embedding_size = self.opt.get("embedding_size") or hidden_size
        actf = self.task_def.actf or self.opt.get("hidden_act", "gelu")
        eps = self.opt.get("layer_norm_eps", 1e-12)
        return MaskLmHead(hidden_size, embedding_size, self.opt["vocab_size"], actf, eps)

    def take_over_head(self, head: nn.Module, encoder: str) -> None:
        found = load_masked_lm(encoder, self.opt.get("transformer_cache"))
        assert isinstance(head, MaskLmHead)
        taken = found is not None and head.take_over(*found)
        logger.info("MaskLM: %s", "the encoder's own head goes on" if taken else "the head starts anew")

    def forward(self, network: Network, head: nn.Module, inputs: ModelInputs) -> Tensor:
        """Scores of masked tokens, (masked tokens, words); without `y_input_ids` of all, (rows, tokens, words)."""
        hidden = network.encode(inputs.input_ids, inputs.token_type_ids, inputs.attention_mask)
        if inputs.y_input_ids is not None:
            hidden = hidden[inputs.y_input_ids != NOT_MASKED]
        return head(hidden, network.bert.get_input_embeddings().weight)

    # loss

    def loss(self, criterion: Criterion, logits: Tensor, batch: Batch) -> Tensor:
        """The mean over the masked tokens of the batch."""
        assert batch.labels is not None
        return criterion(logits, batch.labels[batch.labels != NOT_MASKED])

    def counted(self, batch: Batch) -> Tensor | None:
        assert batch.labels is not None
        return batch.labels != NOT_MASKED

    # evaluation

    def infer(self, network: Network, batch: Batch) -> tuple[Values, Values]:
        masked = self._masked(batch, [evaluation_seed(uid) for uid in batch.row_uids])
        return self.predict(network.run(masked), masked)

    def predict(self, logits: Tensor, batch: Batch) -> tuple[Values, Values]:
        """For each sequence's masked tokens, in order: the true token's log-probability and the predicted id."""
        assert batch.labels is not None
        is_masked = batch.labels != NOT_MASKED
        counts = is_masked.sum(1).tolist()
        gold = batch.labels[is_masked].unsqueeze(1)
        scores = logits.float().log_softmax(-1).gather(1, gold)[:, 0].cpu()
        predictions = logits.argmax(-1).cpu()
        scores_of, predictions_of = (
            [part.numpy() for part in values.split(counts)] for values in (scores, predictions)
        )
        return scores_of, predictions_of

    def golds(self, dataset: Examples) -> Any:
        return [self._told(dataset, index) for index in range(len(dataset))]

    def measure(self, metrics: Sequence[Metric], golds: Any, entries: Entries) -> dict[str, float]:
        """Metrics over all masked tokens, and `perplexity`, the exponential of the mean loss (not a percentage)."""
        values = (golds, entries.predictions, entries.scores)
        found = calc_metrics(metrics, *(np.concatenate(list(own)) for own in values))
        mean = float(np.concatenate(list(entries.scores)).mean())
        return {**found, "perplexity": math.exp(min(-mean, 700.0))}

    def answers(self, scores: Values, predictions: Values) -> list[str | int | float]:
        """For each sequence the list of predicted ids, as JSON."""
        return [json.dumps(own.tolist()) for own in predictions]

    def tokenize_texts(self, split: Split, lines: Sequence[Line], text: Tokenization) -> Iterator[dict[str, Any]]:
        """Texts with gaps: the tokenizer's mask token, such as `[MASK]`."""
        gap = str(text.tokenizer.mask_token)
        for number, fields in lines:
            if gap not in fields["premise"]:
                found = fields["premise"][:SHOWN]
                raise DataError(
                    f"found no {gap} in {found!r}; accepted: texts with {gap} at each gap", split.path, number
                )
        for (_, fields), example in zip(lines, Task.tokenize(self, split, lines, text), strict=True):
            yield example | {"text": fields["premise"]}

    def label_fields(self, fields: Mapping[str, Any], label: Any) -> dict[str, Any]:
        raise ValueError("MaskLM takes no label column; accepted: a table without --label")

    def infer_texts(self, network: Network, batch: Batch) -> tuple[Values, Values]:
        """For each text's gaps, in order: the probability and the id of the likeliest token."""
        is_gap = batch.input_ids == self.tokenizer.mask_token_id
        gaps = replace(batch, labels=torch.where(is_gap, batch.input_ids, NOT_MASKED))
        best = network.run(gaps).float().softmax(-1).max(-1)
        counts = is_gap.sum(1).tolist()
        scores, predictions = ([part.cpu().numpy() for part in values.split(counts)] for values in best)
        return scores, predictions

    def readable(self, dataset: Examples, scores: Values, predictions: Values) -> list[Answer]:
        """The texts with filled gaps, and the probability of each word. Gaps after the last token read stay."""
        gap = str(self.tokenizer.mask_token)
        found = []
        for sample, own, tokens in zip(dataset.samples(), scores, predictions, strict=True):
            text = sample["text"]
            for token in tokens.tolist():
                text = text.replace(gap, str(self.tokenizer.decode([token])).strip(), 1)
            found.append(Answer(text, own.tolist()))
        return found

    def _told(self, dataset: Examples, index: int) -> np.ndarray:
        """The tokens of a sequence that `infer` masks."""
        example = dataset[index]
        tokens = example["token_id"].astype(np.int64)
        return tokens[self.masker(tokens, np.random.default_rng(evaluation_seed(example["uid"])))[1]]


def evaluation_seed(uid: str) -> int:
    """The seed of a sequence's masks, the same in every evaluation."""
    name = f"0/0/{uid}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def packed(sentences: Sequence[list[int]], room: int) -> Iterator[list[int]]:
    """A document's sentences in sequences of at most `room` tokens. Only a sentence that is longer is cut."""
    tokens: list[int] = []
    for sentence in sentences:
        if tokens and len(tokens) + len(sentence) > room:
            yield tokens
            tokens = []
        tokens = tokens + sentence
        while len(tokens) > room:
            yield tokens[:room]
            tokens = tokens[room:]
    if tokens:
        yield tokens


def part_of(length: int, draw: np.random.Generator) -> np.ndarray:
    """The places of a sequence's first and last token, and of a random part between them of at least two tokens."""
    size = int(draw.integers(SHORTEST, length - 1))
    start = int(draw.integers(1, length - size))
    return np.concatenate([[0], np.arange(start, start + size), [length - 1]])
