"""Small runs on MT-DNN's own tiny run: its encoder, its data, its checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from data_utils.storage.text_files import write_lines
from mt_dnn.configuration.config import Config, parse_args
from mt_dnn.training.trainer import RunResult, train

RUN = Path(__file__).parents[1] / "fixtures" / "mtdnn_run"
DEFAULT_RUN = RUN.with_name("mtdnn_default_run")  # the same data, by MT-DNN with its default flags
TASK_DEF = RUN / "task_def.yml"
DATASETS = "cola,mnli_matched,mnli_mismatched,stsb"
SIFT = ("--adv_train", "--adv_norm_level", "post_ln")
SMART = ("--adv_train", "--adv_norm_level", "pre_ln")


def tiny_config(folder: Path, *flags: str) -> Config:
    """The configuration of a run on three tasks that writes to `folder`; `flags` come last and win."""
    base = (
        f"--task_def {TASK_DEF} --data_dir {RUN / 'tinydata'} --train_datasets cola,mnli,stsb "
        f"--test_datasets {DATASETS} "
        f"--init_checkpoint {RUN / 'tiny'} --output_dir {folder} --log_file {folder / 'log.txt'} --epochs 2 "
        "--optimizer adamw --learning_rate 1e-3 --dataloader_num_workers 0"
    )
    return parse_args([*base.split(), *flags])


def tiny_run(folder: Path, *flags: str) -> RunResult:
    return train(tiny_config(folder, *flags))


def exportable(folder: Path) -> tuple[str, ...]:
    """Flags of a run of one task whose head transformers has; files that it needs go to `folder`, the current one."""
    (folder / "tasks.yml").write_text(TASK_DEF.read_text().replace("}", ", actf: tanh}"))
    (folder / "tokenizer").mkdir()
    write_lines(folder / "tokenizer" / "vocab.txt", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film"])
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    names = ("--task_def", "tasks.yml", "--train_datasets", "cola", "--test_datasets", "cola", "--epochs", "1")
    return (*names, "--tokenizer", "tokenizer")


def parameters(path: Path) -> dict[str, torch.Tensor]:
    """The parameters in a checkpoint of this project, read without the project's own loader."""
    from tasks.definition import checkpoint_globals

    with torch.serialization.safe_globals(checkpoint_globals()):
        return torch.load(path, weights_only=True)["state"]


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    """The same names, and values that differ by at most `tolerance`; 0 means bit for bit."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=tolerance, msg=lambda text: f"{name}: {text}")  # noqa: B023
