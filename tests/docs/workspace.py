"""Where the blocks of a page are run: a folder that looks like the project's, with what the page's text supposes."""

from __future__ import annotations

import csv
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from data_utils.pretrained import EMBEDDED_NAME
from examples.plain_pytorch import read_sentences
from mt_dnn.reporting.telemetry import Telemetry
from mt_dnn.training.update import UpdateReport
from tests.docs.pages import ROOT, Block
from tests.docs.shell import commands
from tests.mt_dnn.runs import tiny_config
from tests.tasks.learning import write_small_encoder

TINY = "tiny-encoder"  # stands for the demo's encoder where a run has to be fast
SHOWN = (
    "train.py",
    "prepro_std.py",
    "predict.py",
    "data_utils",
    "examples",
    "experiments",
    "module",
    "mt_dnn",
    "tasks",
)


class Workspace:
    """Runs blocks one after the other; what one leaves, files and names, the next one finds.

    Args:
        folder: the current folder while blocks are run.
        page: file name of the page, which says what has to be there.
        real: shell blocks go to bash, and run with the demo's encoder.
    """

    def __init__(self, folder: Path, page: str, real: bool):
        self.folder, self.real = folder, real
        self.names: dict[str, Any] = {}
        self.printed = ""
        for name in SHOWN:
            (folder / name).symlink_to(ROOT / name)
        if not real:
            write_small_encoder(folder / TINY)
        if page in PREPARATIONS:
            PREPARATIONS[page](self)

    def run(self, block: Block) -> None:
        """Run a block, write it to its file, or compare it with what the block before printed."""
        if block.kind == "file":
            (self.folder / block.detail).write_text(block.text, encoding="utf-8")
        elif block.kind == "output":
            assert self.printed.split() == block.text.split(), block.place
        else:
            text = block.text if self.real else block.text.replace(EMBEDDED_NAME, TINY)
            shown = io.StringIO()
            with redirect_stdout(shown):
                if block.language == "python":
                    exec(compile(text, block.place, "exec"), self.names)
                elif self.real:
                    self._bash(text)
                else:
                    for words in commands(text):
                        run_python(words)
            self.printed = shown.getvalue()

    def _bash(self, text: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=self.folder, env={**os.environ, "PATH": path},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        print(done.stdout)


def run_python(words: Sequence[str]) -> None:
    """A `python …` command in this process, which has imported what takes long."""
    program, first, *rest = words
    assert program == "python", f"only python is run here, a mark says what else becomes of {' '.join(words)}"
    before = sys.argv
    try:
        if first == "-c":
            exec(compile(rest[0], "-c", "exec"), {})
        elif first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            runpy.run_path(str(ROOT / first), run_name="__main__")
    finally:
        sys.argv = before


def _table(path: Path, text: str, label: str, first: int = 0) -> None:
    path.parent.mkdir(exist_ok=True)
    train, _ = read_sentences(ROOT / "examples" / "sentiment.tsv")
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow([text, label])
        rows.writerows(
            [sentence["text"], ("negative", "positive")[sentence["label"]]] for sentence in train[first : first + 16]
        )


def _model_and_batches(workspace: Workspace) -> None:
    """The names that a loop of one's own has."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))
    batches = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1])}
        for ids in torch.randint(50, (3, 2, 6))
    ]
    output = model(**batches[0])
    workspace.names |= {
        "model": model,
        "batches": batches,
        "batch": batches[0],
        "logits": output.logits,
        "task_loss": output.loss,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "data": [{name: values[row] for name, values in batch.items()} for batch in batches for row in range(2)],
        "args": TrainingArguments(
            str(workspace.folder / "out"),
            num_train_epochs=1,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            use_cpu=True,
        ),
    }


def _readme(workspace: Workspace) -> None:
    _table(workspace.folder / "reviews.csv", "review", "stars")
    _model_and_batches(workspace)


def _own_data(workspace: Workspace) -> None:
    for table in ("reviews.csv", "tweets.csv"):
        _table(workspace.folder / table, "text", "label")
    for split, first in (("train", 0), ("dev", 16)):
        _table(workspace.folder / "mails" / f"{split}.csv", "body", "folder", first)


def write_metrics(folder: Path) -> None:
    """A `metrics.jsonl` with all that a line may hold."""
    values = torch.linspace(0.1, 1.0, len(UpdateReport._fields))
    report = UpdateReport(*values)
    folder.mkdir()
    with Telemetry(tiny_config(folder)) as telemetry:
        for update in (1, 5):
            telemetry.add(report)
            telemetry.flush(0, update, "reviews", report, 1e-4)
        telemetry.evaluation(0, 6, {"reviews_dev": {"ACC": 80.0}})


def _telemetry(workspace: Workspace) -> None:
    write_metrics(workspace.folder / "checkpoint")


def _trained_run(workspace: Workspace) -> None:
    """The output folder of a run, `checkpoint`."""
    _table(workspace.folder / "reviews.csv", "review", "stars")
    with (workspace.folder / "reviews.csv").open() as file:
        text = file.read().replace("negative", "bad").replace("positive", "good")
    (workspace.folder / "reviews.csv").write_text(text)
    encoder, data = EMBEDDED_NAME if workspace.real else TINY, Path("data") / "canonical_data"
    given = f"prepro_std.py --from reviews.csv --text review --label stars --model {encoder}"
    run_python(["python", *given.split()])
    given = f"train.py --task_def {data}/task_def.yml --data_dir {data}/{encoder} --init_checkpoint {encoder} "
    given += "--train_datasets reviews --test_datasets reviews --epochs 1"
    run_python(["python", *given.split()])


PREPARATIONS: dict[str, Callable[[Workspace], None]] = {
    "README.md": _readme,
    "own_data.md": _own_data,
    "own_loop.md": _model_and_batches,
    "prediction.md": _trained_run,
    "telemetry.md": _telemetry,
}
