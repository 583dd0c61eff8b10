"""What a trainer's log says of the regularizer: R, sizes of noise, ascent gain, skipped examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mt_dnn.perturbation import Regularization
from mt_dnn.perturbation.reading import token_mask

SUMS = ("adv_loss", "adv_emb_val", "adv_delta_size")


class RegularizerLog:
    """Sums over batches, which stay on the device until an entry is written.

    An entry has, over all processes: `adv_loss`, the mean of R over examples (or tokens, where each has a
    distribution); `adv_emb_val` and `adv_delta_size`, mean |h| and mean |δ| at real tokens; `adv_skipped`, the number
    of examples whose ascent met a value that is not finite; `adv_ascent_gain`, (R(δ) − R(0)) / (R(δ′) − R(0)) of the
    last batch in which it was measured.
    """

    def __init__(self) -> None:
        self._sums: Any = 0.0
        self._rises: Tensor | None = None

    def add(self, result: Regularization | None, count: Tensor | int) -> None:
        """Add a batch.

        Args:
            result: of its search, `ModelRegularizer.last`.
            count: how many distributions its R is the mean over.
        """
        assert result is not None
        sums = (result.loss * count, result.emb_val * count, result.delta_size * count)
        values = torch.stack([torch.as_tensor(value).detach().float() for value in (*sums, result.skipped)])
        counts = torch.as_tensor(count, device=values.device).float().reshape(1)
        self._sums = self._sums + torch.cat((values, counts))
        if result.ascent_rise is not None and result.chance_rise is not None:
            self._rises = torch.stack((result.ascent_rise, result.chance_rise)).float()

    def entry(self, accelerator: Any) -> dict[str, float]:
        """The values since the last entry, by key; empty where no batch was added. The sums start again at 0."""
        if not isinstance(self._sums, Tensor):
            return {}
        *sums, skipped, count = accelerator.reduce(self._sums, reduction="sum").tolist()
        entry = {name: value / max(count, 1) for name, value in zip(SUMS, sums, strict=True)}
        entry["adv_skipped"] = skipped
        if self._rises is not None:
            rise, chance = accelerator.reduce(self._rises, reduction="sum").tolist()
            if chance > 0:
                entry["adv_ascent_gain"] = rise / chance
        self._sums, self._rises = 0.0, None
        return entry


def distribution_count(arguments: Mapping[str, Any], read: Mapping[str, Any]) -> Tensor | int:
    """How many distributions the R of a batch is the mean over.

    Args:
        arguments: of the model.
        read: how the logits are read, `ModelRegularizer.read`.
    """
    if "loss_mask" in read:
        return read["loss_mask"].sum()
    return token_mask(arguments).sum() if read["task_type"] == "tokens" else len(arguments["input_ids"])
