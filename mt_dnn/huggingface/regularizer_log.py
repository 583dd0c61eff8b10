"""What the regularizer found between two entries of a trainer's log."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mt_dnn.perturbation import Regularization

SUMS = ("adv_loss", "adv_emb_val", "adv_delta_size")


class RegularizerLog:
    """Sums over batches, which stay on the device until an entry is asked for.

    An entry has, over all processes: `adv_loss`, the mean of R over examples (or tokens, where each has a
    distribution); `adv_emb_val` and `adv_delta_size`, mean |h| and mean |δ| at real tokens; `adv_skipped`, the number
    of examples whose ascent met a value that is not finite; `adv_ascent_gain`, of a batch of the update that is logged,
    (R(δ) − R(0)) / (R(δ′) − R(0)), where it was measured.
    """

    def __init__(self) -> None:
        self._sums: Any = 0.0
        self._rises: Tensor | None = None

    def add(self, found: Regularization | None, count: Tensor | int) -> None:
        """A batch: what its search found, and how many distributions its R is a mean over."""
        assert found is not None
        sums = (found.loss * count, found.emb_val * count, found.delta_size * count)
        values = torch.stack([torch.as_tensor(value).detach().float() for value in (*sums, found.skipped)])
        counts = torch.as_tensor(count, device=values.device).float().reshape(1)
        self._sums = self._sums + torch.cat((values, counts))
        if found.ascent_rise is not None and found.chance_rise is not None:
            self._rises = torch.stack((found.ascent_rise, found.chance_rise)).float()

    def entry(self, accelerator: Any) -> dict[str, float]:
        """The values since the last entry, which it ends; empty where there was no batch."""
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
