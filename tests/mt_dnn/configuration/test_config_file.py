"""Flags from a YAML file, and the file that every run writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import train
from data_utils.errors import run_command_line
from mt_dnn.configuration.config import parse_args
from tests.mt_dnn.runs import SIFT, assert_same, parameters, tiny_run

RESOLVED = [
    "",
    "--train_datasets cola,mnli --test_datasets cola --epochs 3 --learning_rate 1e-7 --output_dir run:1 --save_hf é",
    "--adv_train",
    "--adv_train --adv_norm_level 1 --adv_opt 0",
    "--adv_train --adv_norm_level post_ln --adv_radius 1e-5 --bregman_mu 1 --bregman_beta 0.9",
    "--adv_train --adv_preset smart_paper",
    "--adv_train --adv_preset mtdnn_release",
    "--adv_train --adv_preset deberta_release --adv_k 2 --adv_noise_clamp false",
    "--adv_train --adv_opt random --adv_norm_level post_ln",
    "--adv_train --adv_norm_level hidden:-1 --adv_radius 0.1",
    "--adv_train --adv_norm_level hidden:0,hidden:1",
    "--adv_train --adv_opt freelb",
    "--adv_train --adv_opt alum --unlabeled_datasets mnli,cola",
    "--max_tokens_per_batch 4096 --vb_dropout --fp16 false --cuda false",
    "--encoder_type 4 --init_checkpoint 1e5 --tokenizer null",
]


def written(folder: Path, text: str) -> str:
    path = folder / "run.yml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("line", RESOLVED)
def test_a_resolved_configuration_read_again_is_the_same_and_tells_of_no_flag_without_effect(
    line: str, tmp_path: Path
) -> None:
    config = parse_args(line.split())
    again = parse_args(["--config", written(tmp_path, config.to_yaml())])
    assert again == config
    assert again.notices == ()


def test_what_starts_a_run_anew_or_goes_on_with_it_is_not_of_the_run() -> None:
    text = parse_args(["--resume", "--model_ckpt", "a.pt", "--dry_run", "--epochs", "7"]).to_yaml()
    assert yaml.safe_load(text)["epochs"] == 7
    assert not {"resume", "model_ckpt", "dry_run", "config"} & yaml.safe_load(text).keys()


def test_flags_beside_the_file_win(tmp_path: Path) -> None:
    path = written(tmp_path, "epochs: 7\nbatch_size: 16\nadv_train: true\nadv_opt: vat\n")
    config = parse_args(["--epochs", "2", "--config", path, "--adv_opt", "smart"])
    assert (config.training.epochs, config.training.batch_size) == (2, 16)
    assert config.adversarial == parse_args(["--adv_train"]).adversarial
    # So does an empty text, which leaves a flag out.
    path = written(tmp_path, "save_hf: here\nclass_weights: balanced\nmodel_ckpt: ''\nbatch_size_eval: ''\n")
    left_out = parse_args(["--config", path, "--save_hf", "", "--class_weights", ""])
    assert left_out == parse_args([]) != parse_args(["--config", path])
    path = written(tmp_path, "epochs: 7\n")
    # A default given on the command line wins, too.
    assert parse_args(["--config", path, "--epochs", "5"]).training.epochs == 5


def test_a_flag_without_effect_is_told_only_where_the_file_changes_it(tmp_path: Path) -> None:
    path = written(tmp_path, "bin_size: 64\ndo_lower_case: false\nadv_train: false\n")
    assert parse_args(["--config", path]).notices == ()
    (notice,) = parse_args(["--config", written(tmp_path, "bin_size: 32\ndo_lower_case: false\n")]).notices
    assert notice.startswith("--bin_size: no use any more")


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),  # a text to YAML
        ("learning_rate: 1", "learning_rate", 1),
        ("train_datasets: [mnli, cola]", "train_datasets", ("mnli", "cola")),
        ("train_datasets: mnli, cola", "train_datasets", ("mnli", "cola")),
        ("bregman_beta: [0.9, 0.99]", "bregman_beta", ("0.9", "0.99")),
        ("bregman_beta: 0.9", "bregman_beta", ("0.9",)),
        ("output_dir: 2024", "output_dir", "2024"),
        ("adv_norm_level: 1", "adv_norm_scope", "sentence"),
        ("fp16: 'off'", "fp16", False),
        ("cuda: null", "cuda", None),
    ],
)
def test_values_as_yaml_has_them(line: str, name: str, value: object, tmp_path: Path) -> None:
    config = parse_args(["--config", written(tmp_path, line + "\n")])
    groups = (config.data, config.training, config.adversarial)
    (found,) = (getattr(group, name) for group in groups if hasattr(group, name))
    assert found == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs: 2\nlerning_rate: 1\n", ", line 2: unknown flag 'lerning_rate' (did you mean 'learning_rate'?)"),
        ("--epochs: 2\n", ", line 1: unknown flag '--epochs' (did you mean 'epochs'?)"),
        ("seed: 1\nepochs: 2\nseed: 3\n", ", line 3: flag 'seed' stands in line 1 already"),
        ("seed: 1\nepochs: 0\n", ", line 2: --epochs: found '0', accepted: an integer, at least 1"),
        ("epochs: many\n", ", line 1: --epochs: found 'many', accepted: an integer, at least 1"),
        ("epochs: {a: 1}\n", ", line 1: --epochs: found \"{'a': 1}\", accepted: an integer"),
        ("epochs: [1]\n", ", line 1: --epochs: found '1', accepted: an integer"),
        ("epochs: true\n", ", line 1: --epochs: found 'true', accepted: an integer"),
        ("fp16: 1.5\n", ", line 1: --fp16: found '1.5', accepted: true or false"),
        ("adv_opt: smort\n", ", line 1: --adv_opt: found 'smort', accepted: random, at, vat"),
        ("learning_rate: .nan\n", ", line 1: --learning_rate: found 'nan'"),
        ("adv_radius: 0\nadv_train: true\n", ", line 1: --adv_radius: found '0'"),
        ("a: [\n", ": is no YAML that can be read"),
        ("- epochs\n", ": found no mapping, accepted: flags as NAME: VALUE"),
        ("", ": found no mapping"),
        ("seed: 2021-02-30\n", ", line 1: holds a value that cannot be read"),
        ("? [a]\n: 1\n", ", line 1: unknown flag"),
    ],
)
def test_mistakes_are_one_line_that_names_the_files_and_exit_2(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SystemExit) as stopped:
        run_command_line(lambda: train.main(["--config", path]))
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert printed.startswith(f"error: {path}{expected}") and printed.count("\n") == 1, printed


def test_a_mistake_of_the_command_line_is_not_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "epochs: 2\n")
    for given in (["--config", path, "--epochs", "0"], ["--config", str(tmp_path / "absent.yml")]):
        with pytest.raises(SystemExit):
            run_command_line(lambda given=given: train.main(given))
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: --epochs: found '0', accepted: an integer, at least 1"
    assert second.startswith(f"error: {tmp_path / 'absent.yml'}: cannot be read: No such file")


def test_the_file_of_a_run_repeats_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_run(tmp_path / "first", *SIFT, "--adv_radius", "0.5", "--bregman_mu", "1", "--seed", "5")
    told = capsys.readouterr().out
    assert "SiFT: SMART's search at the normalized embeddings, radius 50 % of each vector, step size 50 %" in told
    assert "Settings that differ from the defaults: --data_dir" in told and " --bregman_mu 1" in told
    train.main(["--config", str(tmp_path / "first" / "config.yml"), "--output_dir", str(tmp_path / "second")])
    assert_same(parameters(tmp_path / "first" / "model_1.pt"), parameters(tmp_path / "second" / "model_1.pt"))
    both = [yaml.safe_load((tmp_path / run / "config.yml").read_text()) for run in ("first", "second")]
    assert both[0] | {"output_dir": 0} == both[1] | {"output_dir": 0}
    assert both[0]["adv_radius"] == 0.5 and both[0]["adv_step_size"] == 0.5


def test_a_run_ends_with_what_it_found_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tiny_run(tmp_path / "run", "--epochs", "3", "--keep_last", "1")
    lines = [line[20:] for line in capsys.readouterr().out.splitlines()]
    (start,) = (number for number, line in enumerate(lines) if line.startswith("best epoch: "))
    best = result.best_epoch
    assert lines[start].startswith(f"best epoch: {best + 1} of 3 (")
    for line, (dataset, metrics) in zip(lines[start + 1 :], result.metrics.items(), strict=False):
        assert line == f"  {dataset}: " + ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
    model, others, *use = lines[start + 1 + len(result.metrics) :]
    assert model == f"model: {tmp_path / 'run'}/model_{best}.pt, the checkpoint after epoch {best + 1}"
    assert (tmp_path / "run" / f"model_{best}.pt").is_file()
    assert others.startswith(f"in {tmp_path / 'run'}: ")
    for name in ("config.yml", "results.json", "metrics.jsonl"):
        assert name in others and (tmp_path / "run" / name).is_file()
    assert f"*_scores_epoch_{best}.json (predictions of epoch {best + 1})" in others
    assert list((tmp_path / "run").glob(f"*_scores_epoch_{best}.json"))
    texts = {"cola": "TEXT", "mnli": "PREMISE,HYPOTHESIS", "stsb": "PREMISE,HYPOTHESIS"}
    assert use == [
        f"to use it: python predict.py --model {tmp_path / 'run'} --task {task} --from new.csv --text {text} "
        "--output answers.csv"
        for task, text in texts.items()
    ]


def test_epochs_count_from_1_in_every_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_run(tmp_path, "--epochs", "2")
    told = capsys.readouterr().out
    assert set(re.findall(r"[Ee]poch (\d+)", told)) == {"1", "2"} and "epoch 0" not in told
    assert re.search(r"epoch 2 of 2, update 18 of 18, task \w+: loss ", told)
    assert "epoch 2 of 2, cola_dev: ACC " in told
    assert f"{tmp_path}/model_0.pt after epoch 1, model_1.pt after epoch 2" in told
