"""The pictures of docs/concepts.md: the path of each method's δ, and one word's vector at `pre_ln` and `post_ln`.

python -m experiments.sift.pictures
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel

from data_utils.errors import OneLineParser, run_command_line
from data_utils.pretrained import EMBEDDED_NAME, resolve_pretrained
from data_utils.task_def import TaskType
from experiments.sift.reporting.figures import COLOURS, SETTINGS, save_pictures
from mt_dnn.loss import CeCriterion, KlCriterion, SymKlCriterion
from mt_dnn.perturbation import PERTURBATIONS
from mt_dnn.perturbation.base import AdversarialPerturbation
from mt_dnn.perturbation.injection import NoiseInjection

RADIUS = 1.0
STEPS = 4
IGNORED = -1  # label that a criterion ignores; none has it here
SEED = 2
GRID = np.linspace(-1.3, 1.3, 41)
CAPTIONS = {
    "random": "normal noise, no search",
    "r3f": "uniform noise, no search",
    "neftune": "the task loss's own pass",
    "at": "increases the gold label's loss",
    "freelb": "the same, learns at every point",
    "vat": "increases KL(f(h) ‖ f(h+δ))",
    "smart": "increases the symmetrized KL",
    "alum": "as smart, in the second half",
}
SCALES = (0.5, 1.0, 2.0)  # of the embedding tables
WORD = "wonderful"
POINTS = 121  # of a circle
SHARE = 0.2  # of the length of the word's vector at scale 1


class OneWord(nn.Module):
    """A classifier of one word with an embedding of two entries, which a plane can show; records h + δ of each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(1, 2)
        self.inputs: list[Tensor] = []
        with torch.no_grad():
            self.word.weight.copy_(torch.tensor([[0.3, -0.2]]))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.word

    def forward(self, ids: Tensor) -> Tensor:
        h = self.word(ids)
        self.inputs.append(h.detach()[0, 0].clone())
        return self.logits(h[:, 0])

    def logits(self, h: Tensor) -> Tensor:
        """Logits of embeddings, (words, 2) → (words, 2); the second class is likelier above a curve."""
        x, y = h[:, 0], h[:, 1]
        score = 2 * y + 1.3 * torch.sin(1.7 * x) - 0.8 * x * y - 0.3
        return torch.stack((-score, score), dim=1) / 2


def path(name: str) -> tuple[Tensor, Tensor]:
    """The δ of each of a method's passes, (passes, 2), and the function that it climbs on the grid, (41, 41)."""
    torch.manual_seed(SEED)
    model, mask, labels = OneWord(), torch.ones(1, 1), torch.tensor([1])
    searched = name not in ("random", "r3f", "neftune")
    method: AdversarialPerturbation = PERTURBATIONS[name](
        norm_p="l2", radius=RADIUS, step_size=0.45, noise_var=0.25 if searched else 0.6, k=STEPS, start_ratio=0.0
    )
    ids = torch.zeros(1, 1, dtype=torch.long)
    task_loss = nn.CrossEntropyLoss()
    clean = model(ids)
    base = model.inputs.pop()
    method.regularize(
        lambda: model(ids), model, clean, mask, task_type=TaskType.Classification,
        task_loss=lambda output: task_loss(output, labels), noise_seeds=[SEED],
    )  # fmt: skip
    grid = torch.tensor(np.stack(np.meshgrid(GRID, GRID), -1), dtype=torch.float32).view(-1, 2)
    height = climbed(name, model.logits(base + grid), clean, labels)
    return torch.stack(model.inputs) - base, height.view(len(GRID), len(GRID)).detach()


def climbed(name: str, outputs: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """The function that a method climbs, at logits (points, 2); for methods without a search, the symmetrized KL."""
    if name in ("at", "freelb", "neftune"):
        return CeCriterion().rows(outputs, labels.expand(len(outputs)), IGNORED)
    divergence = KlCriterion() if name == "vat" else SymKlCriterion()
    return divergence.rows(outputs, clean.expand_as(outputs), IGNORED)


def draw_methods() -> Figure:
    figure = Figure(figsize=(7.5, 8.6))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.94, wspace=0.06, hspace=0.24)
    axes = figure.subplots(3, 3).flatten()
    for axis, (name, caption) in zip(axes, CAPTIONS.items(), strict=False):
        deltas, heights = path(name)
        axis.contourf(GRID, GRID, heights, levels=14, cmap="Greys", alpha=0.6)
        axis.add_patch(matplotlib.patches.Circle((0, 0), RADIUS, fill=False, color=COLOURS[1], linewidth=1.5))
        axis.plot(0, 0, "o", color=COLOURS[0], markersize=5)
        axis.plot(*deltas.T, "-", color=COLOURS[2], linewidth=1.5)
        axis.plot(*deltas.T, "o", color=COLOURS[2], markersize=4)
        learned = deltas if name == "freelb" else deltas[-1:]
        axis.plot(*learned.T, "*", color=COLOURS[2], markersize=14, markeredgecolor="white")
        axis.set_title(f"{name}\n{caption}", fontsize=10)
        _plain(axis)
    for axis in axes[len(CAPTIONS) :]:
        axis.axis("off")
    axes[len(CAPTIONS)].text(
        0, 0.5,
        "black: the clean vector, δ = 0\nblue: the ball of radius ε\norange: δ of each forward pass\n"
        "star: the model learns here\ngray: what the method increases;\ndarker is larger",
        va="center", fontsize=11, linespacing=1.8,
    )  # fmt: skip
    return figure


def _plain(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[], aspect="equal")


def normalized(encoder: BertModel, token: int, scale: float, level: str, deltas: Tensor) -> Tensor:
    """A word's vector after the LayerNorm, with all embedding tables multiplied by `scale`.

    Args:
        deltas: (points, hidden), added at `level`.

    Returns:
        (points, hidden).
    """
    tables = [module for module in encoder.embeddings.children() if isinstance(module, nn.Embedding)]
    before = [table.weight.detach().clone() for table in tables]
    outputs: list[Tensor] = []
    with torch.no_grad():
        for table in tables:
            table.weight.mul_(scale)
        injection = NoiseInjection(encoder, level)
        # the word is the second token: the first position's embedding is unlike the others
        ids = torch.full((len(deltas), 2), token)
        with injection.add(torch.stack((torch.zeros_like(deltas), deltas), 1)):
            handle = encoder.embeddings.LayerNorm.register_forward_hook(lambda _, __, out: outputs.append(out[:, 1]))
            encoder.embeddings(ids)
            handle.remove()
        for table, weight in zip(tables, before, strict=True):
            table.weight.copy_(weight)
    return outputs[0]


def circles(encoder: BertModel, token: int, level: str) -> dict[float, Tensor]:
    """How a circle of noise at `level` shifts a word's vector after the LayerNorm, by scale of the tables.

    The circle lies in a random plane; its radius is `SHARE` of the vector's length at that level and scale 1.

    Returns:
        (points, 2) for each scale: coordinates in the plane of the shifts' two largest singular values, in lengths of
        the normalized vector.
    """
    hidden = encoder.config.hidden_size
    plane = torch.linalg.qr(torch.randn(hidden, 2, generator=torch.Generator().manual_seed(SEED)))[0]
    angles = torch.linspace(0, 2 * torch.pi, POINTS)
    none = torch.zeros(1, hidden)
    word = encoder.embeddings.word_embeddings.weight[token].detach()
    size = (word if level == "pre_ln" else normalized(encoder, token, 1.0, level, none)).norm()
    deltas = SHARE * size * torch.stack((angles.cos(), angles.sin()), 1) @ plane.T
    shifts = {}
    for scale in SCALES:
        clean = normalized(encoder, token, scale, level, none)
        moved = normalized(encoder, token, scale, level, deltas) - clean
        frame = torch.linalg.svd(moved, full_matrices=False)[2][:2]
        shifts[scale] = moved @ frame.T / clean.norm()
    return shifts


def draw_levels() -> Figure:
    folder = resolve_pretrained(EMBEDDED_NAME)
    encoder = BertModel.from_pretrained(folder, trust_remote_code=False).eval()
    token = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).get_vocab()[WORD]
    figure = Figure(figsize=(9, 5))
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    figure.subplots_adjust(left=0.08, right=0.99, bottom=0.14, top=0.93, wspace=0.05)
    for axis, level in zip(axes, ("pre_ln", "post_ln"), strict=True):
        for place, (scale, shift) in enumerate(circles(encoder, token, level).items()):
            line = ("--", "-", ":")[place]
            axis.plot(*shift.T, color=COLOURS[place], linestyle=line, linewidth=2, label=f"tables × {scale:g}")
        axis.plot(0, 0, "o", color=COLOURS[0], markersize=4)
        axis.set_title(f"noise at {level}")
        axis.set_aspect("equal")
    axes[0].set_ylabel("shift after the LayerNorm, in vector lengths")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path("docs/images"), help="folder of the pictures (default: %(default)s)"
    )
    folder = parser.parse_args(argv).folder
    with matplotlib.rc_context(SETTINGS):
        save_pictures(draw_methods(), folder, "methods", columns=2)
        save_pictures(draw_levels(), folder, "levels")


if __name__ == "__main__":
    run_command_line(main)
