"""The wheel holds the methods and the Trainer under one name, and works where nothing else of the checkout is.

It is installed into a new environment that has torch and transformers, and not this checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.tasks.learning import write_small_encoder

ROOT = Path(__file__).parents[1]
CHECKOUT_ONLY = ("data_utils", "examples", "experiments", "module", "tasks", "tests", "train")
ROOMS = ("perturbation", "huggingface")
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


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment: the wheel, and the packages of the present one (a .pth names their folder).

    The .pth files of the present environment have no effect there, so that an editable install of this checkout is not
    on the path.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    interpreter = folder / "bin" / "python"
    packages = _packages_of(interpreter)
    present = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (packages / "present.pth").write_text("".join(f"{path}\n" for path in present))
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(interpreter),
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
    ]
    subprocess.run([*install, str(wheel)], check=True, cwd=folder)
    return interpreter


def _packages_of(interpreter: Path) -> Path:
    command = [str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def _run(python: Path, *arguments: str, folder: Path) -> str:
    """The output of a Python process in the new environment, without this process's PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["OMP_NUM_THREADS"] = "1"
    command = [str(python), *arguments]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_the_environment_has_the_wheel_and_nothing_else_of_the_checkout(python: Path, tmp_path: Path) -> None:
    packages = _packages_of(python)
    installed = {path.name for path in packages.iterdir()} - {"present.pth", "__pycache__"}
    assert {name for name in installed if not name.endswith(".dist-info")} == {"mt_dnn"}
    files = {path.relative_to(packages).as_posix() for path in packages.glob("mt_dnn/**/*") if path.is_file()}
    sources = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / "mt_dnn" / room).rglob("*.py")}
    top = {"mt_dnn/__init__.py", "mt_dnn/hf_trainer.py", "mt_dnn/py.typed"}
    assert {name for name in files if not name.endswith(".pyc")} == sources | top
    code = f"""
from importlib.util import find_spec
import mt_dnn
assert mt_dnn.__file__.startswith({str(packages)!r}), mt_dnn.__file__
print([spec.origin for spec in map(find_spec, {CHECKOUT_ONLY}) if spec])
"""
    assert str(ROOT) not in _run(python, "-c", code, folder=tmp_path)


@pytest.mark.parametrize(("code", "printed"), [(OWN_LOOP, "True True"), (TRAINER, "True")], ids=["loop", "trainer"])
def test_it_runs_from_another_folder(code: str, printed: str, python: Path, tmp_path: Path) -> None:
    assert _run(python, "-c", code, folder=tmp_path).strip().splitlines()[-1] == printed


@pytest.mark.parametrize("example", ["plain_pytorch", "hf_trainer"])
def test_an_example_that_is_copied_elsewhere_runs(example: str, python: Path, tmp_path: Path) -> None:
    write_small_encoder(tmp_path / "encoder")
    shutil.copy(ROOT / "examples" / f"{example}.py", tmp_path)
    sentences = (ROOT / "examples" / "sentiment.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "sentiment.tsv").write_text("".join(sentences[:16]), encoding="utf-8")
    output = _run(python, f"{example}.py", "--model", "encoder", "--epochs", "1", folder=tmp_path)
    results = [line for line in output.splitlines() if "cross-entropy" in line]
    assert [line.split(":")[0].strip() for line in results] == ["plain", "SiFT"]
