"""The wheel holds the methods and the Trainer under one name, and works where nothing else of the checkout is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("mt_dnn", "setup.py", "pyproject.toml", "README.md", "LICENSE")

OWN_LOOP = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "accelerate", "numpy.testing"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Refuse())
import torch
from torch import nn
from mt_dnn.perturbation import SmartPerturbation

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)
    def get_input_embeddings(self):
        return self.words
    def forward(self, input_ids):
        return self.head(self.words(input_ids).mean(1))

torch.manual_seed(0)
model, batch = Words(), {"input_ids": torch.randint(9, (4, 5))}
smart = SmartPerturbation.for_model(model, task_type="classes")
loss = smart.alpha * smart(model, batch, model(**batch))
loss.backward()
print(loss.item() > 0, model.words.weight.grad.abs().sum().item() > 0)
"""

TRAINER = """
import torch, transformers
from mt_dnn.hf_trainer import AdversarialTrainer
from mt_dnn.perturbation import SiftPerturbation

sizes = dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
rows = [{"input_ids": [5, 6, 7, 8], "labels": n % 2} for n in range(8)]
settings = transformers.TrainingArguments("out", use_cpu=True, max_steps=2, logging_steps=1, report_to=[],
                                          save_strategy="no", disable_tqdm=True)
trainer = AdversarialTrainer(model=model, args=settings, train_dataset=rows,
                             perturbation=SiftPerturbation.with_defaults())
trainer.train()
print(all(entry["adv_loss"] > 0 for entry in trainer.state.log_history if "loss" in entry))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder / "out")]
    subprocess.run([sys.executable, "-m", "pip", "wheel", str(folder), *options], check=True, cwd=folder)
    (found,) = (folder / "out").glob("*.whl")
    return found


def test_it_puts_one_name_into_an_environment(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"mt_dnn"}
    assert "mt_dnn/py.typed" in names
    library = [name for name in names if name.count("/") == 1 and name.startswith("mt_dnn/")]
    assert sorted(library) == ["mt_dnn/__init__.py", "mt_dnn/hf_trainer.py", "mt_dnn/py.typed"]


def test_it_needs_torch_alone_and_transformers_for_the_trainer(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    lines = archive.read(metadata).decode().splitlines()
    needed = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    assert [line for line in needed if "extra" not in line] == ["torch<3,>=2.6"]
    assert any(line.startswith("transformers") and "trainer" in line for line in needed)


@pytest.mark.parametrize(("code", "printed"), [(OWN_LOOP, "True True"), (TRAINER, "True")], ids=["loop", "trainer"])
def test_it_runs_from_another_folder(code: str, printed: str, wheel: Path, tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "packages", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(place)]
    subprocess.run([*install, str(wheel)], check=True, cwd=elsewhere)
    seen = f"import mt_dnn; assert mt_dnn.__file__.startswith({str(place)!r}), mt_dnn.__file__\n"
    environment = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", seen + code], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip().splitlines()[-1] == printed
