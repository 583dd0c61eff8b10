"""How alike noise on word embeddings (SMART) and on normalized embeddings (SiFT) are, for an encoder.

    python -m experiments.sift.levels --model embedded-minilm

Behind the LayerNorm, noise at `pre_ln` and noise at `post_ln` can be set side by side. Both methods take a step up the
same gradient g of what they climb: SiFT's goes along g; SMART's goes along Jᵀg before the LayerNorm, whose Jacobian is
J, and arrives as J Jᵀg. Where J is nearly a multiple of the identity the two steps are nearly the same, and the radius
alone tells the methods apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data_utils.errors import DataError, FlagError, OneLineParser, at_least, run_command_line
from data_utils.text_files import read_lines
from data_utils.tokenizer import load_tokenizer
from module.encoder import load_encoder
from mt_dnn.perturbation.ball import ascent_direction, scope_norm
from mt_dnn.perturbation.injection import NoiseInjection, available_levels

TEXTS = Path("examples/sentiment.tsv")
BATCH = 32
DRAWS = 5  # of g, a text


class Alike(NamedTuple):
    """By real token, (tokens,).

    raw, normalized: lengths of h at `pre_ln` and at `post_ln`; arrived: length behind the LayerNorm of a step at
    `pre_ln` whose length is `share` of h; cosine: between that and the step at `post_ln`.
    """

    raw: Tensor
    normalized: Tensor
    arrived: Tensor
    cosine: Tensor


def alike(encoder: nn.Module, inputs: dict[str, Tensor], share: float, generator: torch.Generator) -> Alike:
    """Compare the steps of both methods up a random gradient.

    Args:
        encoder: in evaluation mode, with both levels.
        inputs: of its forward: `input_ids` (batch, tokens) and `attention_mask` among them.
        share: length of SMART's step, in lengths of h by token (ℓ2).
        generator: of the gradient.
    """
    before, behind = NoiseInjection(encoder, "pre_ln"), NoiseInjection(encoder, "post_ln")
    real = inputs["attention_mask"].bool()

    def normalized(delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """h at both levels, δ being added at the first."""
        seen: list[Tensor] = []

        def noise(h: Tensor) -> Tensor:
            seen.append(h)
            return h if delta is None else h + delta

        with behind.clean() as found, before.add(noise):
            encoder(**inputs)
        return seen[0], found[0]

    with torch.no_grad():
        raw, clean = normalized(None)
    gradient = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    delta = torch.zeros_like(raw, requires_grad=True)
    (pulled,) = torch.autograd.grad((normalized(delta)[1] * gradient * real.unsqueeze(-1)).sum(), delta)
    step = share * scope_norm(raw, "l2", "token") * ascent_direction(pulled, "l2", "token")
    with torch.no_grad():
        arrived = normalized(step)[1] - clean
    cosine = nn.functional.cosine_similarity(arrived, gradient, dim=-1)
    return Alike(*(values[real] for values in (raw.norm(dim=-1), clean.norm(dim=-1), arrived.norm(dim=-1), cosine)))


def measure(model: str, texts: Sequence[str], share: float, seed: int) -> Alike:
    """`alike` over texts.

    Raises:
        UserError: no encoder of that name, or one without an embedding LayerNorm.
    """
    encoder, tokenizer = load_encoder(model).eval(), load_tokenizer(model)
    if "post_ln" not in available_levels(encoder):
        raise FlagError(f"--model: {model} has no LayerNorm at its embeddings, accepted: an encoder with one")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(texts), BATCH):
        inputs = tokenizer(list(texts[start : start + BATCH]), padding=True, truncation=True, return_tensors="pt")
        parts += [alike(encoder, dict(inputs), share, generator) for _ in range(DRAWS)]
    return Alike(*(torch.cat(values) for values in zip(*parts, strict=True)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded-minilm", help="encoder (default: %(default)s)")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="a text a line, after a tab where there is one")
    parser.add_argument("--share", type=float, default=0.03, help="length of SMART's step in lengths of h")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the random gradient")
    args = parser.parse_args(argv)
    if not 0 < args.share < 1:
        raise FlagError(f"--share: found {args.share:g}, accepted: a number above 0 and below 1")
    texts = [line.rpartition("\t")[2] for _, line in read_lines(args.texts) if line.strip()]
    if not texts:
        raise DataError("found no texts; at least one is needed", args.texts)
    found = measure(args.model, texts, args.share, args.seed)
    shares = found.arrived / found.normalized
    low, middle, high = (float(found.cosine.quantile(part)) for part in (0.05, 0.5, 0.95))
    print(f"{args.model}, {len(found.raw)} tokens and gradients of {len(texts)} texts")
    print(f"length of h: {found.raw.mean():.3g} at pre_ln, {found.normalized.mean():.3g} at post_ln")
    print(
        f"a step of {args.share:.1%} of h at pre_ln arrives behind the LayerNorm as {shares.mean():.1%} of h there "
        f"(standard deviation over tokens {shares.std():.1%})"
    )
    print(
        f"its cosine with SiFT's step up the same gradient: median {middle:.3f}, 5 % to 95 %: {low:.3f} to {high:.3f}"
    )


if __name__ == "__main__":
    run_command_line(main)
