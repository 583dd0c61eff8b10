"""One update: what it reports, and how its batches are weighted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mt_dnn.batcher import Batch
from mt_dnn.training.objective import ObjectiveValue


class UpdateReport(NamedTuple):
    """The losses and statistics of one update: scalar tensors, or None for what the update did not compute.

    Losses are means over the `units` of a task (examples for most), sizes are means over tokens, of all batches of the
    update. With several processes each has its share: the mean over processes is the mean over the update.

    Attributes:
        task_loss: ℓ.
        adv_loss: R.
        unlabeled: R of the unlabeled examples.
        bregman: μ times the proximal term.
        emb_val, eff_perturb, delta_size, ascent_rise, chance_rise: see `Regularization`.
        skipped: the share of examples whose search met a number that is not finite.
        relative_sizes: neither mean nor scalar: ‖δ‖₂ / ‖h‖₂ of each real token of this process's examples, (tokens,).
    """

    task_loss: Tensor
    adv_loss: Tensor | None = None
    unlabeled: Tensor | None = None
    bregman: Tensor | None = None
    emb_val: Tensor | None = None
    eff_perturb: Tensor | None = None
    delta_size: Tensor | None = None
    skipped: Tensor | None = None
    ascent_rise: Tensor | None = None
    chance_rise: Tensor | None = None
    relative_sizes: Tensor | None = None


class BatchWeights(NamedTuple):
    """The weights of one process's batches in an update.

    The weighted sum over batches, averaged over processes, is the mean over all examples (or tokens) of the update. Of
    one process the weights are on the CPU; of several they stay on the device, so that the host need not wait.

    Attributes:
        losses: (batches,), for losses of labeled examples.
        examples: (batches,), for means over labeled examples.
        tokens: (batches,), for means over their tokens.
        unlabeled: (batches,), for losses of unlabeled examples.
        unlabeled_share: the share of the labeled examples whose batch comes with an unlabeled one, a scalar.
    """

    losses: Tensor
    examples: Tensor
    tokens: Tensor
    unlabeled: Tensor
    unlabeled_share: Tensor

    def for_report(self, position: int) -> list[Tensor]:
        """The weight of batch number `position` in each field of an `UpdateReport`."""
        weights = dict.fromkeys(UpdateReport._fields, self.losses[position])
        weights |= dict.fromkeys(("emb_val", "eff_perturb", "delta_size"), self.tokens[position])
        weights |= {"unlabeled": self.unlabeled[position], "skipped": self.examples[position]}
        return list(weights.values())


def in_examples(units: Tensor, all_units: Tensor, all_examples: Tensor, same_task: Tensor) -> Tensor:
    """The units of each batch, scaled so that the units of a task sum to its number of examples: (batches,).

    Args:
        units: (batches,), of this process.
        all_units, all_examples: (batches,), of all processes.
        same_task: (batches, batches), true where two batches belong to the same task.
    """
    examples_of_task, units_of_task = (same_task.mul(counts).sum(1) for counts in (all_examples, all_units))
    return units * (examples_of_task / units_of_task.clamp(min=1))


def sum_of_values(column: Sequence[Tensor]) -> Tensor | None:
    """The sum over the batches that have a value; None if none has."""
    return torch.stack(list(column)).sum() if len(column) > 1 else next(iter(column), None)


def report_of(value: ObjectiveValue, batch: Batch) -> UpdateReport:
    """What one batch contributes to the report."""
    report = UpdateReport(value.task_loss, unlabeled=value.unlabeled, bregman=value.bregman)
    result = value.regularization
    if result is None:
        return report
    return report._replace(
        adv_loss=result.loss.detach(),
        emb_val=result.emb_val,
        eff_perturb=result.eff_perturb,
        delta_size=result.delta_size,
        skipped=result.skipped / len(batch.attention_mask),
        ascent_rise=result.ascent_rise,
        chance_rise=result.chance_rise,
    )
