"""What a newcomer is likely to get wrong, each answered in one line that says what helps."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import prepro_std
from data_utils.errors import run_command_line
from tests.encoder_folder import write_encoder

TEXTS = [("good fine", "yes"), ("bad poor", "no")] * 20
TABLE = "review,stars\n" + "".join(f"{text} {number},{label}\n" for number, (text, label) in enumerate(TEXTS))
FROM = "prepro_std --from reviews.csv --text review --label stars --model encoder"
COMMENTS = "text,rude,loud\n" + "good fine,0,1\nbad poor,1.0,false\n" * 10
SEVERAL = "prepro_std --from comments.csv --label rude,loud --model encoder --root_dir several"
TRAIN = (
    "train --task_def data/canonical_data/task_def.yml --data_dir data/canonical_data/encoder "
    "--init_checkpoint encoder --train_datasets reviews --test_datasets reviews"
)
TASK_DEF = "data/canonical_data/task_def.yml"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, and the task that was made of it."""
    folder = tmp_path_factory.mktemp("newcomer")
    write_encoder(folder / "encoder")
    (folder / "reviews.csv").write_text(TABLE)
    (folder / "other.csv").write_text(TABLE.replace("yes", "maybe"))
    (folder / "comments.csv").write_text(COMMENTS)
    for name, wrong in (("maybe", "good,maybe,0"), ("empty", "good,1,")):
        (folder / f"{name}.csv").write_text(f"{COMMENTS}{wrong}\n")
    (folder / "wide.csv").write_text(TABLE + "bad,no,and more\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepro_std.main(FROM.split()[1:])
    return folder


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (FROM.replace("review ", "revew "), "found no column 'revew' (did you mean 'review'?); --text names it"),
        (FROM.replace("reviews.csv", "wide.csv"), "wide.csv, line 42: "),
        (
            SEVERAL.replace("comments.csv", "maybe.csv"),
            "maybe.csv, line 22: found 'maybe' in column 'rude', accepted: 0 or 1 (or false, true) in every",
        ),
        (
            SEVERAL.replace("comments.csv", "empty.csv"),
            "empty.csv, line 22: found no value in column 'loud', accepted: 0 or 1 (or false, true) in every",
        ),
        (SEVERAL.replace("loud", "lout"), "found no column 'lout' (did you mean 'loud'?); --label names it; acc"),
        (SEVERAL.replace("rude,loud", "rude,rude"), "--label: found 'rude' 2 times, accepted: once"),
        (f"{SEVERAL} --task_type Regression", "--task_type: found Regression for 2 label columns, accepted: Mu"),
        (f"{TRAIN} --lerning_rate 1", "unknown flag --lerning_rate (did you mean '--learning_rate'?)"),
        (f"{TRAIN} --adv_norm_level post-ln", "accepted: pre_ln, post_ln, deberta, hidden:N (did you mean 'post_ln'?)"),
        (
            TRAIN.replace("--train_datasets reviews", "--train_datasets reviws"),
            f"--train_datasets: reviws: {TASK_DEF}: found no task 'reviws' (did you mean 'reviews'?)",
        ),
        (
            TRAIN.replace(" --test_datasets reviews", ""),
            f"--test_datasets (left out): mnli_matched: {TASK_DEF}: found no task 'mnli'; accepted: reviews",
        ),
        (
            TRAIN.replace("--test_datasets reviews", "--test_datasets reviews_"),
            "data/canonical_data/encoder/reviews__dev.json: missing (did you mean 'reviews'?); make it with: python",
        ),
        (
            TRAIN.replace("--train_datasets reviews", "--train_datasets reviews others"),
            "found 'others', which belongs to no flag; several names are split by commas: a,b",
        ),
        (f"{TRAIN} --resume", "holds no intact checkpoint model_*.pt to resume from; start without --resume"),
        (f"{TRAIN} --epochs 2.5", "--epochs: found '2.5', accepted: an integer, at least 1"),
        (f"{TRAIN} --save_hf data", "data is not empty; accepted: a new or an empty folder"),
        (f"{TRAIN} --config run.yml", "run.yml: cannot be read: No such file or directory"),
        (
            f"predict --task_def {TASK_DEF} --task reviws --prep_input data/canonical_data/encoder/reviews_dev.json "
            "--checkpoint checkpoint/model_0.pt --score s.json",
            "checkpoint/model_0.pt: missing; accepted: a checkpoint written by train.py or by MT-DNN",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_one_line(
    line: str, expected: str, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(prepared)
    module, *argv = line.split()
    with pytest.raises(SystemExit) as stopped:
        run_command_line(lambda: importlib.import_module(module).main(argv))
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert expected in printed and printed.startswith("error: ") and printed.count("\n") == 1, printed
