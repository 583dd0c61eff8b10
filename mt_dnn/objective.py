"""The training objective: task loss and regularizer of one batch in a single forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from module.noise import default_generator
from module.noise_injection import NoiseInjection
from mt_dnn.batcher import Batch
from mt_dnn.loss import Criterion
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.perturbation import Regularization, SmartPerturbation


class ObjectiveValue(NamedTuple):
    """loss: ℓ(f(x), y) + α·R, a scalar with gradient; task_loss: ℓ alone; regularization: None in a plain run."""

    loss: Tensor
    task_loss: Tensor
    regularization: Regularization | None


class TrainingObjective(nn.Module):
    """ℓ(f(x), y) + α·R, summed in one forward, so that wrappers (DDP, mixed precision) see one forward and backward.

    Args:
        network: the shared encoder and heads.
        criteria: the task loss of each task id.
        perturbation: the regularizer; None trains plainly.
        alpha: α.
    """

    def __init__(
        self,
        network: SANBertNetwork,
        criteria: Sequence[Criterion],
        perturbation: SmartPerturbation | None = None,
        alpha: float = 1.0,
    ):
        super().__init__()
        self.network = network
        self.criteria = nn.ModuleList(criteria)
        self.perturbation = perturbation
        self.alpha = alpha
        self.injection = None if perturbation is None else NoiseInjection(network.bert, perturbation.level)

    def forward(self, batch: Batch, noise_seeds: Sequence[int]) -> ObjectiveValue:
        """The objective of one batch.

        Args:
            batch: examples of one task, with labels.
            noise_seeds: one seed an example (`module.noise.example_seeds`).
        """
        if self.perturbation is None or self.injection is None:
            loss = self._task_loss(self._logits(batch), batch)
            return ObjectiveValue(loss, loss.detach(), None)
        dropout_state = None
        if self.perturbation.same_dropout:
            dropout_state = default_generator(batch.input_ids.device).get_state()
        with self.injection.clean():
            logits = self._logits(batch)
        loss = self._task_loss(logits, batch)
        found = self.perturbation.regularize(
            lambda: self._logits(batch),
            self.network.bert,
            logits,
            batch.attention_mask,
            task_id=batch.task_id,
            task_type=self.network.tasks[batch.task_id].task_def.task_type,
            noise_seeds=noise_seeds,
            dropout_state=dropout_state,
        )
        return ObjectiveValue(loss + self.alpha * found.loss, loss.detach(), found)

    def _logits(self, batch: Batch) -> Tensor:
        return self.network(
            batch.input_ids, batch.token_type_ids, batch.attention_mask, None, None, task_id=batch.task_id
        )

    def _task_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return self.criteria[batch.task_id](logits, batch.labels)
