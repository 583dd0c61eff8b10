"""The training objective: task loss, regularizer and proximal term of one batch in a single forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from module.attention_masks import AttentionMasks, PaddedMask
from mt_dnn.batcher import Batch
from mt_dnn.loss import Criterion
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.perturbation import AdversarialPerturbation, Regularization
from mt_dnn.perturbation.noise import default_generator, dropout_seed, forked_dropout
from mt_dnn.perturbation.outputs import Comparison
from mt_dnn.perturbation.places import bases_of_one_pass, clean_pass, find_places
from mt_dnn.training.bregman import BregmanTerm
from mt_dnn.training.delta_cache import DeltaCache
from tasks import Task

CLEAN_PASS = -1  # its number in the dropout streams of unlabeled batches


class ObjectiveValue(NamedTuple):
    """The objective of one batch and its parts, as scalars; a part that the run or the update does not have is None.

    Attributes:
        loss: ℓ(f(x), y) + α·R + μ·B, with gradient.
        task_loss: ℓ, or the loss that replaces it (FreeLB), without gradient.
        regularization: R and the statistics of the search.
        bregman: μ·B, without gradient.
        unlabeled_loss: α·R of the unlabeled batch, with gradient.
        unlabeled: R of the unlabeled batch, without gradient.
    """

    loss: Tensor
    task_loss: Tensor
    regularization: Regularization | None = None
    bregman: Tensor | None = None
    unlabeled_loss: Tensor | None = None
    unlabeled: Tensor | None = None


class CleanPass(NamedTuple):
    """f(x) of a batch, and what the perturbed passes reuse from it.

    Attributes:
        logits: as the task's head gives them.
        bases: the tensor at each injection point, (batch, tokens, hidden); None without a regularizer.
        dropout_state: the random generator's state before the pass, for passes with the same dropout; None without one.
    """

    logits: Any
    bases: Sequence[Tensor] | None = None
    dropout_state: Tensor | None = None


class TrainingObjective(nn.Module):
    """ℓ(f(x), y) + α·R + μ·B in one forward, so that wrappers (DDP, mixed precision) see one forward and one backward.

    With distillation, ℓ also contains the loss against a teacher's scores, for batches that have them.

    Args:
        network: the shared encoder and heads.
        criteria: the task loss of each task id.
        perturbation: the regularizer; None trains without.
        alpha: α.
        bregman: the proximal term; None trains without.
        kd_criteria: of each task id, the criterion against a teacher's logits; empty: no distillation.

    Attributes:
        delta_cache: δ of the training examples from the epoch before; None starts every search from initial noise.
    """

    def __init__(
        self,
        network: SANBertNetwork,
        criteria: Sequence[Criterion],
        perturbation: AdversarialPerturbation | None = None,
        alpha: float = 1.0,
        bregman: BregmanTerm | None = None,
        kd_criteria: Sequence[Criterion] = (),
    ):
        super().__init__()
        self.network = network
        self.criteria = nn.ModuleList(criteria)
        self.kd_criteria = nn.ModuleList(kd_criteria)
        self.perturbation = perturbation
        self.alpha = alpha
        self.bregman = bregman
        self.delta_cache: DeltaCache | None = None
        self.places = () if perturbation is None else find_places(network.encoder, perturbation.level)
        teachers = [] if bregman is None else [cast(SANBertNetwork, bregman.teacher)]
        self._masks = AttentionMasks(*(own.bert for own in (network, *teachers)))

    def forward(
        self,
        batch: Batch,
        noise_seeds: Sequence[int],
        unlabeled: Batch | None = None,
        unlabeled_seeds: Sequence[int] = (),
        *,
        regularized: bool = True,
        measure_gain: bool = False,
    ) -> ObjectiveValue:
        """The objective of one batch.

        Args:
            batch: examples of one task, with labels.
            noise_seeds: one seed a row (`mt_dnn.perturbation.noise.example_seeds`).
            unlabeled, unlabeled_seeds: unlabeled examples of the same task, and their seeds.
            regularized: add R; false in updates that `--adv_start_ratio` or `--adv_every` leave plain.
            measure_gain: let the search measure its ascent gain.
        """
        batches = [PaddedMask(own.attention_mask, own.padded) for own in (batch, unlabeled) if own is not None]
        with self._masks.made_once(*batches):
            return self._value(batch, noise_seeds, unlabeled, unlabeled_seeds, regularized, measure_gain)

    def _value(
        self,
        batch: Batch,
        noise_seeds: Sequence[int],
        unlabeled: Batch | None,
        unlabeled_seeds: Sequence[int],
        regularized: bool,
        measure_gain: bool,
    ) -> ObjectiveValue:
        method = self.perturbation if regularized else None
        if method is not None and method.replaces_task_loss:
            found = self._regularize(method, batch, noise_seeds, None, measure_gain)
            task_loss = loss = found.loss
            clean = None if self.bregman is None else self._clean(batch)
        else:
            clean = self._clean(batch)
            task_loss = loss = self._task_loss(clean.logits, batch)
            found = None
            if method is not None:
                found = self._regularize(method, batch, noise_seeds, clean, measure_gain)
                loss = loss + self.alpha * found.loss
        value = ObjectiveValue(loss, task_loss.detach(), found)
        if self.bregman is not None and clean is not None:
            term = self.bregman(
                clean.logits,
                lambda teacher: cast(SANBertNetwork, teacher).run(batch),
                batch.attention_mask,
                **self._view(batch),
            )
            value = value._replace(loss=value.loss + term, bregman=term.detach())
        if unlabeled is not None and method is not None:
            # From a separate random stream, so that labeled passes have the dropout of a run without unlabeled data.
            with forked_dropout(unlabeled.input_ids.device, dropout_seed(unlabeled_seeds, CLEAN_PASS)):
                unlabeled_clean = self._clean(unlabeled)
            extra = self._regularize(method, unlabeled, unlabeled_seeds, unlabeled_clean).loss
            value = value._replace(unlabeled_loss=self.alpha * extra, unlabeled=extra.detach())
        return value

    def _clean(self, batch: Batch) -> CleanPass:
        if not self.places:
            return CleanPass(self.network.run(batch))
        state = default_generator(batch.input_ids.device).get_state()
        with clean_pass(self.places) as recorded:
            logits = self.network.run(batch)
        return CleanPass(logits, bases_of_one_pass(recorded), state)

    def _regularize(
        self,
        method: AdversarialPerturbation,
        batch: Batch,
        noise_seeds: Sequence[int],
        clean: CleanPass | None,
        measure_gain: bool = False,
    ) -> Regularization:
        cached = None
        if self.delta_cache is not None and batch.positions:
            cached = self.delta_cache.of(batch.positions, batch.attention_mask)
        return method.regularize(
            lambda: self.network.run(batch),
            self.places,
            None if clean is None else clean.logits,
            batch.attention_mask,
            task_id=batch.task_id,
            **self._view(batch),
            noise_seeds=noise_seeds,
            dropout_state=None if clean is None else clean.dropout_state,
            task_loss=lambda perturbed: self._task_loss(perturbed, batch),
            base=None if clean is None else clean.bases,
            cached=cached,
            measure_gain=measure_gain,
        )

    def _task(self, batch: Batch) -> Task:
        return self.network.tasks[batch.task_id]

    def _view(self, batch: Batch) -> dict[str, Any]:
        """How the batch's logits are compared as distributions, see `Comparison`."""
        task = self._task(batch)
        return {"task_type": task.view, "pairwise": batch.groups or 1, "loss_mask": task.counted(batch)}

    def _task_loss(self, logits: Any, batch: Batch) -> Tensor:
        task = self._task(batch)
        loss = task.loss(cast(Criterion, self.criteria[batch.task_id]), logits, batch)
        if not self.kd_criteria or batch.soft_labels is None:
            return loss
        criterion = cast(Criterion, self.kd_criteria[batch.task_id])
        teacher = Comparison(task.teacher(batch), batch.attention_mask, criterion, **self._view(batch))
        return loss + sum(teacher.distance(student, soft) for student, soft in teacher.pairs(task.taught(logits)))
