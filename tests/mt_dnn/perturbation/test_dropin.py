"""MT-DNN's calls, and the folder of the methods alone, with torch only."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_utils.task_def import EncoderModelType, TaskType
from mt_dnn.loss import MseCriterion, SymKlCriterion
from mt_dnn.perturbation import SiftPerturbation, SmartPerturbation
from mt_dnn.perturbation.injection import UnsupportedLevelError
from tests.encoders import LEVELS, tiny_classifier, token_batch
from tests.search import clean_logits, regularize, seeds_of

ROOT = Path(__file__).parents[3]


def test_positional_arguments_of_mtdnn() -> None:
    model = tiny_classifier()
    ids, types, mask = token_batch(model.bert)
    for method in (SmartPerturbation, SiftPerturbation):
        smart = method(1e-6, False, 1e-3, 1e-5, "inf", 1, False, EncoderModelType.BERT, [], 0)
        assert smart.projection == "normalize"
        logits = model(ids, types, mask)
        result = smart.forward(model, logits, ids, types, mask, None, None, 0, TaskType.Classification, 1)
        assert isinstance(result, tuple)
        assert len(result) == 3
        assert all(value.dim() == 0 and value.isfinite() for value in result)
        loss, emb_val, eff_perturb = result
        assert loss.requires_grad
        assert loss.item() > 0
        assert emb_val.item() > 0
        assert eff_perturb.item() > 0


def test_defaults_are_those_of_mtdnn() -> None:
    smart = SmartPerturbation()
    found = (smart.epsilon, smart.step_size, smart.noise_var, smart.norm_p, smart.k, smart.scope, smart.projection)
    assert found == (1e-6, 1e-3, 1e-5, "inf", 1, "token", "normalize")
    assert SmartPerturbation(norm_level=1).scope == "sentence"


def test_what_came_later_is_keyword_only() -> None:
    with pytest.raises(TypeError):
        SmartPerturbation(1e-6, False, 1e-3, 1e-5, "inf", 1, False, EncoderModelType.BERT, [], 0, 0.1)  # type: ignore[misc]


@pytest.mark.parametrize("level", LEVELS)
def test_forward_is_regularize(level: str) -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    smart = SmartPerturbation(radius=0.1, noise_var=0.05, step_size=0.1, level=level)
    clean = clean_logits(model, batch, level)
    expected = regularize(smart, model, batch, clean)
    found = smart.forward(model, clean, *batch, noise_seeds=seeds_of(3))
    assert torch.equal(found[0], expected.loss)
    assert torch.equal(found[1], expected.emb_val)
    assert torch.equal(found[2], expected.eff_perturb)


def test_no_mask_means_no_padding() -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert, lengths=(6, 6), width=6)
    smart = SmartPerturbation(radius=0.1, noise_var=0.05, step_size=0.1)
    clean = model(*batch)
    with_mask = smart.forward(model, clean, *batch, noise_seeds=seeds_of(2))

    class Unmasked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: torch.Tensor, types: torch.Tensor, mask: object, *rest: object) -> torch.Tensor:
            assert mask is None
            logits: torch.Tensor = self.inner(ids, types, batch.attention_mask)
            return logits

    without = smart.forward(Unmasked(), clean, batch.input_ids, batch.token_type_ids, None, noise_seeds=seeds_of(2))
    assert torch.equal(without[0], with_mask[0])


def test_the_criterion_of_the_task_is_taken_from_mtdnns_list() -> None:
    model = tiny_classifier()
    batch = token_batch(model.bert)
    losses = []
    for task_id in (0, 1):
        smart = SmartPerturbation(loss_map=[MseCriterion(), SymKlCriterion()], radius=0.1, noise_var=0.05)
        losses.append(smart.forward(model, model(*batch), *batch, None, None, task_id, noise_seeds=seeds_of(3))[0])
    alone = SmartPerturbation(loss_map=[SymKlCriterion()], radius=0.1, noise_var=0.05)
    expected = alone.forward(model, model(*batch), *batch, noise_seeds=seeds_of(3))[0]
    assert torch.equal(losses[1], expected)
    assert not torch.equal(losses[0], expected)


def test_sift_refuses_an_encoder_without_a_normalized_point() -> None:
    class Words(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word = torch.nn.Embedding(9, 4)

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.word

        def forward(self, ids: torch.Tensor, *_: object) -> torch.Tensor:
            hidden: torch.Tensor = self.word(ids)
            return hidden.sum(1)

    model, ids = Words(), torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(UnsupportedLevelError, match=r"Words.*post_ln.*pre_ln"):
        SiftPerturbation(radius=0.1).forward(model, model(ids), ids, None, None)
    assert SmartPerturbation(radius=0.1).forward(model, model(ids), ids, None, None)[0].isfinite()


STAND_ALONE = """
import sys

class Refuse:
    packages = {refused!r}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.packages:
            raise ImportError(f"{{name}} is not there")

sys.meta_path.insert(0, Refuse())
sys.path[:] = [{folder!r}] + [p for p in sys.path if p and p != {root!r}]
import torch
from torch import nn
from data_utils.task_def import EncoderModelType, TaskType
from {place} import PERTURBATIONS, SiftPerturbation, SmartPerturbation
import {place} as found
assert found.__file__.startswith({folder!r}), found.__file__

class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.word_embeddings = nn.Embedding(20, 8)
        self.LayerNorm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(0.1)
    def forward(self, ids):
        return self.dropout(self.LayerNorm(self.word_embeddings(ids)))

class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = Embeddings()
        self.layer = nn.Linear(8, 8)
    def get_input_embeddings(self):
        return self.embeddings.word_embeddings
    def forward(self, ids):
        return torch.tanh(self.layer(self.embeddings(ids)))

class SANBertNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.bert = Bert()
        self.scoring_list = nn.ModuleList([nn.Linear(8, 3)])
    def forward(self, input_ids, token_type_ids, attention_mask, premise_mask=None, hyp_mask=None, task_id=0,
                y_input_ids=None, fwd_type=0, embed=None):
        assert fwd_type == 0 and embed is None and y_input_ids is None
        return self.scoring_list[task_id](self.bert(input_ids).mean(1))

torch.manual_seed(0)
network = SANBertNetwork()
ids, mask = torch.randint(20, (4, 6)), torch.ones(4, 6, dtype=torch.long)
for method in (SmartPerturbation, SiftPerturbation):
    teacher = method(1e-6, False, 1e-3, 1e-5, "inf", 1, False, EncoderModelType.BERT, [], 0)
    logits = network(ids, torch.zeros_like(ids), mask)
    loss, emb_val, eff_perturb = teacher.forward(
        network, logits, ids, torch.zeros_like(ids), mask, None, None, 0, TaskType.Classification, 1
    )
    loss.backward()
    assert network.bert.layer.weight.grad.isfinite().all()

def gold_loss(logits):
    return torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))

for method in PERTURBATIONS.values():
    perturbation = method.with_defaults(level="post_ln")
    logits = network(ids, torch.zeros_like(ids), mask)
    loss, _, _ = perturbation(network, logits, ids, torch.zeros_like(ids), mask, task_loss=gold_loss)
    assert loss.item() > 0
    loss.backward()
    regularizer = method.for_model(network, task_loss=gold_loss, task_type="classes")
    batch = {{"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask}}
    assert regularizer(network, batch, network(**batch)).item() > 0
print("stands alone")
"""


PACKAGE = ROOT / "mt_dnn" / "perturbation"
# MT-DNN's own files of these names, which stay as they are.
MTDNN_FILES = {
    "mt_dnn/__init__.py": "",
    "mt_dnn/loss.py": "raise ImportError('MT-DNN has a file of this name')",
    "mt_dnn/perturbation.py": "raise ImportError('the folder takes its place')",
    "data_utils/__init__.py": "",
    "data_utils/task_def.py": """
from enum import IntEnum

class TaskType(IntEnum):
    Classification = 1
    Regression = 2

class EncoderModelType(IntEnum):
    BERT = 1
""",
}


def test_the_folder_imports_torch_and_itself_alone() -> None:
    allowed = sys.stdlib_module_names | {"torch"}
    for file in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 1 or str(node.module).partition(".")[0] in allowed, (file.name, node.module)
            elif isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed, file.name


@pytest.mark.parametrize("place", ["mt_dnn.perturbation", "research.noise_methods"])
def test_the_folder_alone_is_the_drop_in(place: str, tmp_path: Path) -> None:
    """In an MT-DNN checkout, whose files stay as they are, and under another name in another repository."""
    for name, text in MTDNN_FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    shutil.copytree(PACKAGE, tmp_path / place.replace(".", "/"), ignore=shutil.ignore_patterns("__pycache__"))
    refused = (
        *("transformers", "tokenizers", "safetensors", "huggingface_hub", "accelerate", "datasets", "pydantic", "yaml"),
        *("sklearn", "scipy", "pandas", "tqdm", "tensorboard", "matplotlib", "embedded_minilm"),
    )
    code = STAND_ALONE.format(refused=refused, folder=str(tmp_path), root=str(ROOT), place=place)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "stands alone"
    assert all((tmp_path / name).read_text(encoding="utf-8") == text for name, text in MTDNN_FILES.items())
