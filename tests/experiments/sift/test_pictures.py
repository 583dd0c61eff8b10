"""The pictures show what they say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from transformers import BertConfig, BertModel

from experiments.sift.pictures import CAPTIONS, GRID, RADIUS, SCALES, SHARE, circles, climbed, draw_methods, path
from experiments.sift.reporting.figures import NARROW, NARROW_WIDTH, save_pictures


@pytest.mark.parametrize("name", CAPTIONS)
def test_searches_climb_what_is_drawn_and_stay_in_the_ball(name: str) -> None:
    deltas, heights = path(name)
    assert heights.shape == (len(GRID), len(GRID)) and heights.min() >= -1e-6
    assert deltas.norm(dim=1).max() <= RADIUS * 1.0001
    on_grid = [heights[tuple(np.abs(GRID - value).argmin() for value in (y, x))] for x, y in deltas.tolist()]
    assert len(deltas) == (1 if name in ("random", "r3f", "neftune") else 4 if name == "freelb" else 5)
    assert on_grid == sorted(on_grid)


def test_what_is_climbed_in_closed_form() -> None:
    """Of p = (1/4, 3/4) against q = (1/2, 1/2): KL(q ‖ p) = ln 2 − ½ ln 3 + ..., by hand."""
    clean, point = torch.zeros(1, 2), torch.tensor([[0.25, 0.75]]).log()
    forward = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    backward = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    for name, expected in (("vat", forward), ("smart", forward + backward), ("at", -np.log(0.75))):
        found = climbed(name, point, clean, torch.tensor([1]))
        torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float32))


def test_rescaled_tables_shrink_noise_at_pre_ln_alone() -> None:
    torch.manual_seed(0)
    tiny = BertConfig(vocab_size=9, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    encoder = BertModel(tiny).eval()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    # BERT's first weights are so small that the LayerNorm's eps counts beside them
    encoder.embeddings.LayerNorm.eps = 0.0
    radii = {level: {scale: shift.norm(dim=1).mean() for scale, shift in circles(encoder, 3, level).items()}
             for level in ("pre_ln", "post_ln")}  # fmt: skip
    for scale in SCALES:
        torch.testing.assert_close(radii["post_ln"][scale], torch.tensor(SHARE), rtol=1e-3, atol=0)
        torch.testing.assert_close(radii["pre_ln"][scale] * scale, radii["pre_ln"][1.0], rtol=0.05, atol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_panel_a_method() -> None:
    titles = [axis.get_title().split("\n")[0] for axis in draw_methods().axes]
    assert [title for title in titles if title] == [*CAPTIONS]


def test_a_narrow_screen_gets_the_same_panels_one_below_another(tmp_path: Path) -> None:
    drawing = Figure(figsize=(9, 3), layout="constrained")
    for axis, name in zip(drawing.subplots(1, 3, sharey=True), ("a", "b", "c"), strict=True):
        axis.set(title=name, yticks=[0], yticklabels=["a name that is far too long for a telephone"])
    save_pictures(drawing, tmp_path, "three")
    sizes = {}
    for name in ("three", f"three{NARROW}"):
        text = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        sizes[name] = [float(number) / 72 for number in re.findall(r'viewBox="0 0 (\S+) (\S+)"', text)[0]]
    assert sizes["three"] == [9, 3]
    assert sizes[f"three{NARROW}"] == pytest.approx([NARROW_WIDTH, 3 * 0.75 * NARROW_WIDTH])
    lefts, tops = zip(*(axis.get_position().get_points()[0] for axis in drawing.axes), strict=True)
    assert len(set(lefts)) == 1 and tops[0] > tops[1] > tops[2]
    assert "\n" in drawing.axes[0].get_yticklabels()[0].get_text()
