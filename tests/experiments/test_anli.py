from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_utils.errors import DataError, FlagError
from experiments.anli.anli_prepro import main
from tests.experiments.publish import converted, trained, write_json
from tests.experiments.scripts import EXPERIMENTS, calls_of

TASK_DEF = EXPERIMENTS / "anli" / "anli_task_def.yml"
RUN = "anli/run_anli_finetuning.sh"


def row(number: int, label: str) -> dict[str, Any]:
    """As anli_v1.0 has it."""
    return {
        "uid": f"id-{number}", "context": f"Good {number}.", "hypothesis": "Bad.", "label": label, "model_label": "n",
        "emturk": True, "genre": "wiki", "reason": "It says so.", "tag": "",
    }  # fmt: skip


ROWS = [row(0, "c"), row(1, "n"), row(2, "e")]
LINES = ["id-0\tc\tGood 0.\tBad.", "id-1\tn\tGood 1.\tBad.", "id-2\te\tGood 2.\tBad."]


def publish(folder: Path, rounds: tuple[str, ...] = ("R1", "R2", "R3")) -> None:
    for name in rounds:
        for split in ("train", "dev", "test"):
            write_json(folder / "anli_v1.0" / name / f"{split}.jsonl", ROWS)


def test_rounds_are_datasets_of_one_task(tmp_path: Path):
    publish(tmp_path)
    expected = {f"anli_r{number}_{split}": LINES for number in (1, 2, 3) for split in ("train", "dev", "test")}
    assert converted(main, tmp_path) == expected


def test_a_round_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    publish(tmp_path, ("R2",))
    assert set(converted(main, tmp_path)) == {"anli_r2_train", "anli_r2_dev", "anli_r2_test"}
    assert "skipped, not in" in capsys.readouterr().out
    with pytest.raises(DataError, match="r3: anli_v1.0/R3"):
        main(["--root_dir", str(tmp_path), "--tasks", "r2,r3"])
    with pytest.raises(FlagError, match="found 'R2'"):
        main(["--root_dir", str(tmp_path), "--tasks", "R2"])


def test_only_a_test_set_may_lack_labels(tmp_path: Path):
    without = {key: value for key, value in ROWS[0].items() if key != "label"}
    for split in ("test", "dev"):
        write_json(tmp_path / "R1" / f"{split}.jsonl", [without])
    with pytest.raises(DataError, match="dev.jsonl, line 1: found no 'label'"):
        converted(main, tmp_path)
    (tmp_path / "R1" / "dev.jsonl").unlink()
    assert converted(main, tmp_path) == {"anli_r1_test": ["id-0\t\tGood 0.\tBad."]}


def test_from_the_release_to_the_scores_of_each_round(tmp_path: Path):
    publish(tmp_path)
    converted(main, tmp_path)
    found = trained(tmp_path, RUN, "mtdnn", task_def=TASK_DEF)
    assert set(found) == {f"anli_r{number}_{split}" for number in (1, 2, 3) for split in ("dev", "test")}
    for scores in found.values():
        assert scores["uids"] == ["id-0", "id-1", "id-2"] and len(scores["scores"]) == 9 and "ACC" in scores["metrics"]


def test_rounds_share_a_run(tmp_path: Path):
    for task, expected in (("mtdnn", "anli_r1,anli_r2,anli_r3"), ("anli_r1", "anli_r1")):
        (call,) = calls_of(RUN, "d", "bert", "base", task, 16, 1, folder=tmp_path)
        assert call["train_datasets"] == expected and Path(call["task_def"]).samefile(TASK_DEF)
