"""Published files, made small, and what a prepro command makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import prepro_std
from data_utils.readers import Scores, read_score_file
from mt_dnn.configuration.config import parse_args
from mt_dnn.training.trainer import train
from tests.encoder_folder import write_encoder
from tests.experiments.scripts import calls_of


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_json(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A file of JSON lines."""
    write_lines(path, (json.dumps(row) for row in rows))


def converted(main: Callable[[list[str]], None], root: Path, *flags: str) -> dict[str, list[str]]:
    """The lines of the TSVs that a prepro command writes, by name."""
    main(["--root_dir", str(root), *flags])
    return {path.stem: path.read_text(encoding="utf-8").splitlines() for path in (root / "canonical_data").iterdir()}


def trained(
    root: Path, script: str, task: str, *flags: str, encoder: str = "bert-tiny-uncased", task_def: Path
) -> dict[str, Scores]:
    """The score files, by dataset and split, of one epoch of a run script on the TSVs in `ROOT/canonical_data`.

    The command that the script would start runs in this process, in which everything is imported already.

    Args:
        flags: of train.py, beside the script's.
        encoder: what the script calls the BERT of size tiny.
    """
    tsvs, words = root / "canonical_data", ["--task_def", str(task_def), "--max_seq_len", "16"]
    folder = write_encoder(root / encoder)
    prepro_std.main(["--model", str(folder), "--root_dir", str(tsvs), *words])
    (call,) = calls_of(script, tsvs, "bert", "tiny", task, 2, 1, folder=root)
    assert call.pop("launcher") == "python" and call["init_checkpoint"] == encoder
    output = root / call["output_dir"]
    shutil.rmtree(output)  # the stand-in's checkpoints
    call |= {
        "output_dir": str(output), "log_file": str(root / call["log_file"]), "init_checkpoint": str(folder),
        "epochs": "1", "dataloader_num_workers": "0",
    }  # fmt: skip
    train(parse_args([word for name, value in call.items() for word in (f"--{name}", value)] + list(flags)))
    assert (output / "model_0.pt").is_file() and (output / "mt-dnn-train.log").is_file()
    ending = "_scores_epoch_0.json"
    return {path.name.removesuffix(ending): read_score_file(path) for path in output.glob(f"*{ending}")}
