"""Worst-case accuracy of a classifier under noise on its embeddings, by radius: projected gradient descent (PGD).

Paper: Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR
(https://arxiv.org/abs/1706.06083). Radii are shares of a vector's length at the point where the noise enters, so that
they mean the same at every level and for every model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt_dnn.batcher import Batch, Example
from mt_dnn.data.sampler import batches_by_length
from mt_dnn.perturbation import AdversarialTraining
from mt_dnn.perturbation.injection import NoiseInjection, find_encoder
from mt_dnn.perturbation.noise import example_seeds
from mt_dnn.perturbation.search import Search

STEP_RATIO = 2.5  # K steps of 2.5 ε / K: enough to come from any start to any place of the ball [Madry et al. 2018]
START = 0.1  # length of the initial noise, as a share of ε


def pgd(
    network: nn.Module,
    examples: Sequence[Example],
    collate: Callable[[Sequence[Example]], Batch],
    level: str,
    radii: Sequence[float],
    *,
    steps: int = 5,
    restarts: int = 1,
    seed: int = 0,
) -> list[np.ndarray]:
    """Whether each example withstands the attack, radius by radius.

    The attack climbs the cross-entropy of the gold label, in evaluation mode, in K steps of 2.5 ε / K within the balls
    ‖δ_t‖₂ ≤ ε ‖h_t‖₂ of all real tokens t: `--adv_scale relative --adv_p_norm l2 --adv_norm_scope token`. It starts at
    normal noise of length about 0.1 ε ‖h_t‖₂, drawn from the seed, the restart and the example's uid alone. (A uniform
    draw from a ball of many dimensions lies at its surface, and few steps do not make up for the detour.)

    An example stands at a radius where it is classified right without noise, and at the start and after every step of
    all restarts, at this radius and at every smaller one. Accuracy thus falls with the radius by construction: what
    stands is attacked at the next radius, what fell is not. It bounds the accuracy under the worst noise from above.

    Args:
        network: called as MT-DNN's; it is left in evaluation mode, its parameters and their gradients as they are.
        examples: of a classification task, with labels.
        collate: makes a padded batch of some of them.
        level: where the noise enters, see `NoiseInjection`.
        radii: ε, above 0 and rising.
        steps: K.
        restarts: attacks at each radius, each with a start of its own.
        seed: of the starts.

    Returns:
        For the radius 0 and then for each of `radii`: (examples,), whether an example stands.

    Raises:
        UnsupportedLevelError: the encoder has no such injection point.
    """
    network.eval()
    injection = NoiseInjection(find_encoder(network), level)
    device = next(network.parameters()).device
    lengths = np.array([len(example["token_id"]) for example in examples])
    standing = np.ones(len(examples), bool)

    def keep(withstands: Callable[[Batch], Tensor]) -> None:
        """Let those of the standing examples fall that do not withstand."""
        attacked = np.flatnonzero(standing)
        for rows in batches_by_length(lengths[attacked]):
            batch = collate([examples[index] for index in attacked[rows]]).to(device)
            standing[attacked[rows]] = withstands(batch).cpu().numpy()

    keep(lambda batch: _withstands_nothing(network, batch))
    found = [standing.copy()]
    for radius in radii:
        method = AdversarialTraining(
            norm_p="l2", scale="relative", level=level, radius=radius, k=steps,
            step_size=STEP_RATIO * radius / steps, noise_var=START * radius,
        )  # fmt: skip
        for restart in range(restarts):
            keep(lambda batch: _withstands(network, batch, method, injection, example_seeds(seed, restart, batch.uids)))  # noqa: B023
        found.append(standing.copy())
    return found


@torch.no_grad()
def _withstands_nothing(network: nn.Module, batch: Batch) -> Tensor:
    return _is_right(_logits(network, batch), batch)


def _withstands(
    network: nn.Module,
    batch: Batch,
    method: AdversarialTraining,
    injection: NoiseInjection,
    noise_seeds: Sequence[int],
) -> Tensor:
    """Whether each example is right at the start of one attack and after each of its steps, (batch,)."""
    assert batch.labels is not None
    search = Search(method, lambda: _logits(network, batch), injection, batch.attention_mask, noise_seeds)
    stands = torch.ones(len(batch), dtype=torch.bool, device=batch.input_ids.device)
    for _ in range(method.ascent_steps):
        logits = search.ascent_output()
        stands &= _is_right(logits, batch)
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        search.ascend(search.gradient(loss), logits.isfinite().all(1))
    with torch.no_grad():
        return stands & _is_right(search.final_output(), batch)


def _is_right(logits: Tensor, batch: Batch) -> Tensor:
    """Whether the gold label has the largest logit; it has not where a logit is not finite."""
    return (logits.argmax(1) == batch.labels) & logits.isfinite().all(1)


def _logits(network: nn.Module, batch: Batch) -> Tensor:
    return network(batch.input_ids, batch.token_type_ids, batch.attention_mask, None, None, task_id=batch.task_id)
