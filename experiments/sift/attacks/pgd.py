"""Worst-case accuracy of a classifier under noise on its embeddings, by radius: projected gradient descent (PGD).

Paper: Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR
(https://arxiv.org/abs/1706.06083). Radii are shares of a vector's length at the injection point, so that
they are comparable between levels and models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

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

STEP_RATIO = 2.5  # K steps of 2.5 ε / K: enough to get from any start to any point of the ball [Madry et al. 2018]
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
    """Attack each example at rising radii.

    The attack climbs the cross-entropy of the gold label, in evaluation mode, in K steps of 2.5 ε / K within the balls
    ‖δ_t‖₂ ≤ ε ‖h_t‖₂ of all real tokens t: `--adv_scale relative --adv_p_norm l2 --adv_norm_scope token`. It starts at
    normal noise of length about 0.1 ε ‖h_t‖₂, drawn from the seed, the restart and the example's uid. (A uniform draw
    from a high-dimensional ball lies near its surface, from where a few steps do not get far enough.)

    An example is robust at a radius if it is classified right without noise, and at the start and after every step of
    all restarts, at this radius and all smaller ones. So accuracy never rises with the radius, and only robust examples
    are attacked at the next one. The result is an upper bound of the accuracy under the worst noise.

    Args:
        network: with MT-DNN's signature; it is in evaluation mode afterwards, parameters and gradients are unchanged.
        examples: of a classification task, with labels.
        collate: makes a padded batch of some of them.
        level: where the noise enters, see `NoiseInjection`.
        radii: ε, above 0 and rising.
        steps: K.
        restarts: attacks at each radius, with different starts.
        seed: of the starts.

    Returns:
        for the radius 0 and then each of `radii`: whether each example is robust, (examples,).

    Raises:
        UnsupportedLevelError: the encoder has no such injection point.
    """
    network.eval()
    injection = NoiseInjection(find_encoder(network), level)
    device = next(network.parameters()).device
    lengths = np.array([len(example["token_id"]) for example in examples])
    robust = np.ones(len(examples), bool)

    def attack(is_robust: Callable[[Batch], Tensor]) -> None:
        """Test the examples that are still robust."""
        attacked = np.flatnonzero(robust)
        for rows in batches_by_length(lengths[attacked]):
            batch = collate([examples[index] for index in attacked[rows]]).to(device)
            robust[attacked[rows]] = is_robust(batch).cpu().numpy()

    attack(lambda batch: _is_right_without_noise(network, batch))
    by_radius = [robust.copy()]
    for radius in radii:
        method = AdversarialTraining(
            norm_p="l2", scale="relative", level=level, radius=radius, k=steps,
            step_size=STEP_RATIO * radius / steps, noise_var=START * radius,
        )  # fmt: skip
        for restart in range(restarts):
            seeds_of = partial(example_seeds, seed, restart)
            attack(partial(_is_robust, network, method, injection, seeds_of))
        by_radius.append(robust.copy())
    return by_radius


@torch.no_grad()
def _is_right_without_noise(network: nn.Module, batch: Batch) -> Tensor:
    return _is_right(_logits(network, batch), batch)


def _is_robust(
    network: nn.Module,
    method: AdversarialTraining,
    injection: NoiseInjection,
    seeds_of: Callable[[Sequence[str]], Sequence[int]],
    batch: Batch,
) -> Tensor:
    """Whether each example is classified right at the start of one attack and after each of its steps, (batch,).

    Args:
        seeds_of: uids → seeds of the start.
    """
    assert batch.labels is not None
    search = Search(method, lambda: _logits(network, batch), (injection,), batch.attention_mask, seeds_of(batch.uids))
    right = torch.ones(len(batch), dtype=torch.bool, device=batch.input_ids.device)
    for _ in range(method.ascent_steps):
        logits = search.ascent_output()
        right &= _is_right(logits, batch)
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        search.ascend(search.gradient(loss), logits.isfinite().all(1))
    with torch.no_grad():
        return right & _is_right(search.final_output(), batch)


def _is_right(logits: Tensor, batch: Batch) -> Tensor:
    """Whether the gold label has the largest logit, (batch,); False where a logit is not finite."""
    return (logits.argmax(1) == batch.labels) & logits.isfinite().all(1)


def _logits(network: nn.Module, batch: Batch) -> Tensor:
    return network(batch.input_ids, batch.token_type_ids, batch.attention_mask, None, None, task_id=batch.task_id)
