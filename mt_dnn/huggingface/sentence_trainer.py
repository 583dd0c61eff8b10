"""sentence-transformers' trainers with an adversarial regularizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mt_dnn.huggingface.regularizer_log import distribution_count
from mt_dnn.huggingface.sentence_checks import (
    losses_of,
    refuse_options,
    refuse_search,
    refuse_setup,
    result_of,
    view_of_scores,
)
from mt_dnn.huggingface.text_batches import TextForward, merged_texts, recorded_texts
from mt_dnn.huggingface.trainer import AdversarialMixin
from mt_dnn.perturbation import AdversarialPerturbation
from mt_dnn.perturbation.reading import token_mask
from mt_dnn.perturbation.wrappers import unwrapped

# How much an output may change by padding, relative to the largest, in single and in half precision.
PADDING_TOLERANCE, HALF_TOLERANCE = 1e-3, 0.05


class SentenceAdversarialMixin(AdversarialMixin):
    """Adds α·R to the loss of a sentence-transformers trainer: `class Mine(SentenceAdversarialMixin, Base)`.

    `Base` is `SentenceTransformerTrainer` or `CrossEncoderTrainer`. R compares with the forwards that the loss itself
    runs, one or more a batch. The perturbed passes embed all texts of the batch at once, padded to the longest, so that
    each search has one δ; before the first one the trainer checks that the padding does not change the model's output.

    - `SentenceTransformerTrainer`: R is the squared error between the clean and the perturbed similarity scores of a
      row's texts: the first column with each other column, by the model's own similarity function. It is a mean over
      rows and columns. All texts of a row are perturbed together.
    - `CrossEncoderTrainer`: R compares the logits of all pairs that the loss scores. With several labels they are
      classes (symmetrized KL divergence). One score is read as yes or no under `BinaryCrossEntropyLoss` (the same
      divergence of two Bernoulli distributions) and as a number under other losses (squared error).

    Cost: K + 1 passes over all texts of a batch in addition to the loss's own.

    Seeds, log, evaluation and `hyperparameter_search` are those of `AdversarialMixin`. α was measured for
    classification; choose it by the size of the loss, since R of similarity scores is the same under every loss.

    Args:
        perturbation: the method. Accepted are those that compare, at the levels `pre_ln`, `post_ln` and `deberta`.
        alpha: α, the weight of R; None: the weight measured for this method and level.
        task_type: of a cross-encoder, how its scores are read: `classes`, `labels` or `numbers`.
        *args, **kwargs: of the trainer.

    Raises:
        UnsupportedLevelError: the model has no injection point of the method's level, as `StaticEmbedding` has none.
        ValueError: another base; FSDP, DeepSpeed, torch.compile, NEFTune; `Router`; texts without padding; a loss that
            does not embed each text once, such as the cached losses and `MatryoshkaLoss`; a method that needs labels.

    Examples:
        >>> class Mine(SentenceAdversarialMixin, SentenceTransformerTrainer): pass
        >>> trainer = Mine(model, args, train_dataset=pairs, loss=CoSENTLoss(model),
        ...                perturbation=SiftPerturbation.with_defaults())
    """

    _unsupported: ClassVar[Mapping[str, str]] = {}

    # What the mixin uses of sentence-transformers' trainers.
    loss: Any
    collect_features: Any

    def __init__(
        self,
        *args: Any,
        perturbation: AdversarialPerturbation,
        alpha: float | None = None,
        task_type: Any = None,
        **kwargs: Any,
    ) -> None:
        self._result = result_of(type(self))
        refuse_options(type(self), self._result, task_type, kwargs)
        refuse_search(perturbation)
        super().__init__(*args, perturbation=perturbation, alpha=alpha, task_type=task_type, **kwargs)
        refuse_setup(self)
        if task_type is None:
            self.regularizer.task_type = "numbers" if self._embeds_columns else view_of_scores(self)
        self._padding_checked = False

    @property
    def _embeds_columns(self) -> bool:
        return self._result == "sentence_embedding"

    def _regularized_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool,
        num_items_in_batch: Tensor | int | None,
        batch: int,
    ) -> Any:
        with self.regularizer.clean(model), recorded_texts(model, self._result) as forwards:
            result = self._base_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = result if return_outputs else (result, None)
        texts = self._texts_of(forwards)
        columns = self._column_count(inputs, texts) if self._embeds_columns else 1
        self._check_padding(unwrapped(model), forwards, texts)

        def scores(found: Tensor) -> Tensor:
            return similarities(unwrapped(model), found, columns) if self._embeds_columns else found

        adv_loss = self.regularizer(
            model,
            texts,
            scores(torch.cat([forward.output for forward in forwards])),
            noise_seeds=self._row_seeds.of(texts, batch, columns if self._embeds_columns else None),
            forward=lambda inner, _: scores(inner(dict(texts))[self._result]),
            measure_gain=self._is_logged(),
        )
        self._regularizer_log.add(self.regularizer.last, distribution_count(texts, self.regularizer.read))
        loss = loss + self.alpha * adv_loss
        return (loss, outputs) if return_outputs else loss

    def _texts_of(self, forwards: list[TextForward]) -> dict[str, Any]:
        """The texts of all forwards in one batch.

        Raises:
            ValueError: there are none, or they do not fit into one batch.
        """
        if not forwards:
            raise ValueError(f"{self._loss_names()}: ran no forward with gradients; accepted: losses that run one")
        tokenizer = self.model.tokenizer
        left = getattr(tokenizer, "padding_side", "right") == "left"
        texts = [forward.features for forward in forwards]
        if all(
            getattr(module, "include_prompt", True) for module in self.model.modules()
        ):  # no module reads its length
            texts = [{name: x for name, x in features.items() if name != "prompt_length"} for features in texts]
        return merged_texts(texts, getattr(tokenizer, "pad_token_id", None) or 0, left)

    def _column_count(self, inputs: Mapping[str, Any], texts: Mapping[str, Any]) -> int:
        """The number of text columns of a batch.

        Raises:
            ValueError: there is one, or the loss did not embed each column once, in their order.
        """
        columns, _ = self.collect_features(dict(inputs))
        if len(columns) < 2:
            raise ValueError("found one column of texts, which has no similarity scores; accepted: two or more")
        lengths = [token_mask(column).sum(1) for column in columns]
        words = [column["input_ids"][token_mask(column).bool()] for column in columns]
        mask = token_mask(texts)
        found = (mask.sum(1), texts["input_ids"][mask.bool()])
        if not all(map(torch.equal, found, (torch.cat(lengths), torch.cat(words)))):
            raise ValueError(
                f"{self._loss_names()}: did not embed each column of texts once, in their order; accepted: losses that "
                "do, such as MultipleNegativesRankingLoss, CoSENTLoss or CosineSimilarityLoss"
            )
        return len(columns)

    @torch.no_grad()
    def _check_padding(self, model: nn.Module, forwards: list[TextForward], texts: Mapping[str, Any]) -> None:
        """Check, at the first batch whose columns are padded further, that this does not change the model's output.

        Raises:
            ValueError: it does.
        """
        if self._padding_checked or all(
            x.features["input_ids"].size(1) == texts["input_ids"].size(1) for x in forwards
        ):
            return
        with _evaluated(model):
            apart = torch.cat([model(dict(forward.features))[self._result] for forward in forwards]).float()
            together = model(dict(texts))[self._result].float()
        half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())
        tolerance = HALF_TOLERANCE if half or torch.is_autocast_enabled(apart.device.type) else PADDING_TOLERANCE
        if (apart - together).abs().max() > tolerance * apart.abs().max():
            raise ValueError(
                f"{type(model).__name__} gives a text another output when it is padded further; accepted: models whose "
                "output does not depend on padding, or columns of the same number of tokens"
            )
        self._padding_checked = True

    def _loss_names(self) -> str:
        return " or ".join(type(loss).__name__ for loss in losses_of(self))


def similarities(model: Any, embeddings: Tensor, columns: int) -> Tensor:
    """The similarity scores of each row's texts, (columns · rows, columns − 1).

    A row's scores, its first column with each other one, are repeated for each of its texts: the search counts texts,
    and the mean over all entries is the mean over rows and columns.

    Args:
        model: a `SentenceTransformer`, for its similarity function.
        embeddings: (columns · rows, size), all rows of a column after those of the column before.
    """
    first, *others = embeddings.chunk(columns)
    scores = torch.stack([model.similarity_pairwise(first, other) for other in others], dim=1)
    return scores.repeat(columns, 1)


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; then each module is in the mode in which it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
