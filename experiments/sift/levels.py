"""How similar are noise on word embeddings (SMART) and on normalized embeddings (SiFT)? Measured for an encoder.

    python -m experiments.sift.levels --model embedded-minilm

Noise at `pre_ln` and at `post_ln` can be compared after the LayerNorm. Both methods take an ascent step, with the same
gradient g after the LayerNorm. SiFT's step has the direction g. SMART's has the direction Jᵀg before the LayerNorm, J
being its Jacobian, which becomes J Jᵀg after it. If J is nearly a multiple of the identity, the two steps are nearly
the same, and only the radius distinguishes the methods.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data_utils.errors import DataError, FlagError, OneLineParser, at_least, run_command_line
from data_utils.storage.text_files import read_lines
from data_utils.tokenizer import load_tokenizer
from module.encoder import load_encoder
from mt_dnn.perturbation.ball import ascent_direction, scope_norm
from mt_dnn.perturbation.injection import NoiseInjection, available_levels

TEXTS = Path("examples/sentiment.tsv")
BATCH = 32
DRAWS = 5  # of g, for each text


class StepComparison(NamedTuple):
    """SMART's ascent step against SiFT's, one value for each real token, (tokens,).

    raw, normalized: lengths of h at `pre_ln` and at `post_ln`; shift: how far a step at `pre_ln` of length
    `share` · ‖h‖ moves the LayerNorm's output; cosine: between that shift and the step at `post_ln`.
    """

    raw: Tensor
    normalized: Tensor
    shift: Tensor
    cosine: Tensor


def compare_steps(
    encoder: nn.Module, inputs: dict[str, Tensor], share: float, generator: torch.Generator
) -> StepComparison:
    """Compare the ascent steps of both methods for a random gradient.

    Args:
        encoder: in evaluation mode, with both levels.
        inputs: arguments of its forward, with `input_ids` (batch, tokens) and `attention_mask`.
        share: length of SMART's step as a share of ‖h‖₂, for each token.
        generator: of the gradient.
    """
    before, after = NoiseInjection(encoder, "pre_ln"), NoiseInjection(encoder, "post_ln")
    real = inputs["attention_mask"].bool()

    def normalized(delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """h at both levels, with δ added at the first."""
        inputs_h: list[Tensor] = []

        def noise(h: Tensor) -> Tensor:
            inputs_h.append(h)
            return h if delta is None else h + delta

        with after.clean() as outputs_h, before.add(noise):
            encoder(**inputs)
        return inputs_h[0], outputs_h[0]

    with torch.no_grad():
        raw, clean = normalized(None)
    gradient = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    delta = torch.zeros_like(raw, requires_grad=True)
    (pulled,) = torch.autograd.grad((normalized(delta)[1] * gradient * real.unsqueeze(-1)).sum(), delta)
    step = share * scope_norm(raw, "l2", "token") * ascent_direction(pulled, "l2", "token")
    with torch.no_grad():
        shift = normalized(step)[1] - clean
    cosine = nn.functional.cosine_similarity(shift, gradient, dim=-1)
    parts = (raw.norm(dim=-1), clean.norm(dim=-1), shift.norm(dim=-1), cosine)
    return StepComparison(*(values[real] for values in parts))


def measure(model: str, texts: Sequence[str], share: float, seed: int) -> StepComparison:
    """`compare_steps` over all tokens of texts.

    Raises:
        UserError: there is no encoder of that name, or it has no embedding LayerNorm.
    """
    encoder, tokenizer = load_encoder(model).eval(), load_tokenizer(model)
    if "post_ln" not in available_levels(encoder):
        raise FlagError(f"--model: {model} has no LayerNorm at its embeddings, accepted: an encoder with one")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(texts), BATCH):
        inputs = tokenizer(list(texts[start : start + BATCH]), padding=True, truncation=True, return_tensors="pt")
        parts += [compare_steps(encoder, dict(inputs), share, generator) for _ in range(DRAWS)]
    return StepComparison(*(torch.cat(values) for values in zip(*parts, strict=True)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded-minilm", help="encoder (default: %(default)s)")
    parser.add_argument(
        "--texts", type=Path, default=TEXTS, help="one text per line, after the last tab if there is one"
    )
    parser.add_argument("--share", type=float, default=0.03, help="length of SMART's step as a share of h's length")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the random gradient")
    args = parser.parse_args(argv)
    if not 0 < args.share < 1:
        raise FlagError(f"--share: found {args.share:g}, accepted: a number above 0 and below 1")
    texts = [line.rpartition("\t")[2] for _, line in read_lines(args.texts) if line.strip()]
    if not texts:
        raise DataError("found no texts; at least one is needed", args.texts)
    found = measure(args.model, texts, args.share, args.seed)
    shares = found.shift / found.normalized
    low, middle, high = (float(found.cosine.quantile(part)) for part in (0.05, 0.5, 0.95))
    print(f"{args.model}, {len(found.raw)} tokens and gradients of {len(texts)} texts")
    print(f"length of h: {found.raw.mean():.3g} at pre_ln, {found.normalized.mean():.3g} at post_ln")
    print(
        f"a step of {args.share:.1%} of h at pre_ln is {shares.mean():.1%} of h after the LayerNorm "
        f"(standard deviation over tokens {shares.std():.1%})"
    )
    print(
        f"its cosine with SiFT's step for the same gradient: median {middle:.3f}, 5 % to 95 %: {low:.3f} to {high:.3f}"
    )


if __name__ == "__main__":
    run_command_line(main)
