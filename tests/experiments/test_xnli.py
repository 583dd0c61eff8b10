from __future__ import annotations

from pathlib import Path

import pytest

from data_utils.errors import DataError
from experiments.xnli.xnli_prepro import main
from tests.experiments.publish import converted, trained, write_json, write_lines
from tests.experiments.scripts import EXPERIMENTS, calls_of, run_script

TASK_DEF = EXPERIMENTS / "xnli" / "xnli_task_def.yml"
RUN = "xnli/run_xnli_finetuning.sh"
COLUMNS = (
    "language", "gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse",
    "sentence1", "sentence2", "promptID", "pairID", "genre", "label1", "label2", "label3", "label4", "label5",
    "sentence1_tokenized", "sentence2_tokenized", "match",
)  # fmt: skip


def row(language: str, pair: int, label: str = "neutral") -> dict[str, str]:
    """As XNLI-1.0 has it."""
    texts = {"sentence1": f"Good “{pair}” {language}", "sentence2": "Bad"}
    return {name: texts.get(name, "") for name in COLUMNS} | {
        "language": language, "gold_label": label, "promptID": "9", "pairID": str(pair), "match": "True",
    }  # fmt: skip


ROWS = [row("de", 1), row("de", 2, "entailment"), row("en", 1), row("en", 2, "contradiction")]


def publish(folder: Path) -> None:
    """The tables of XNLI-1.0, and MNLI in two languages."""
    for split in ("dev", "test"):
        lines = ["\t".join(COLUMNS), *("\t".join(row.values()) for row in ROWS)]
        write_lines(folder / "XNLI-1.0" / f"xnli.{split}.tsv", lines)
    for language in ("en", "de"):
        lines = [f"good {language}\tbad\tcontradictory", "fine\tfine\tentailment", "poor\tbad\tneutral"]
        write_lines(folder / f"XNLI-MT-1.0/multinli/multinli.train.{language}.tsv", ["premise\thypo\tlabel", *lines])


def test_languages_together_and_each_alone(tmp_path: Path):
    publish(tmp_path)
    found = converted(main, tmp_path)
    german = ["de-1\tneutral\tGood “1” de\tBad", "de-2\tentailment\tGood “2” de\tBad"]
    english = ["en-1\tneutral\tGood “1” en\tBad", "en-2\tcontradiction\tGood “2” en\tBad"]
    train = ["1\tentailment\tfine\tfine", "2\tneutral\tpoor\tbad"]
    assert found == {
        **{f"xnli_{split}": german + english for split in ("dev", "test")},
        **{f"xnli_de_{split}": german for split in ("dev", "test")},
        **{f"xnli_en_{split}": english for split in ("dev", "test")},
        "xnli_train": ["0\tcontradiction\tgood en\tbad", *train],
        "xnli_en_train": ["0\tcontradiction\tgood en\tbad", *train],
        "xnli_de_train": ["0\tcontradiction\tgood de\tbad", *train],
    }


def test_json_is_read_as_the_table_is(tmp_path: Path):
    publish(tmp_path / "table")
    write_json(tmp_path / "json" / "xnli.dev.jsonl", ROWS)
    table, from_json = (converted(main, tmp_path / name) for name in ("table", "json"))
    assert from_json == {name: table[name] for name in ("xnli_dev", "xnli_de_dev", "xnli_en_dev")}


@pytest.mark.parametrize("name", ["MNLI/train.tsv", "multinli_1.0/multinli_1.0_train.txt"])
def test_mnli_is_the_english_training_set(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]):
    lines = ["gold_label\tpairID\tsentence1\tsentence2", "neutral\t77e\ta\tb", "-\t78e\tc\td", "entailment\t79e\te\tf"]
    write_lines(tmp_path / name, lines)
    assert converted(main, tmp_path) == {"xnli_train": ["0\tneutral\ta\tb", "2\tentailment\te\tf"]}
    printed = capsys.readouterr().out
    assert "2 examples; 1 left out, without an agreed label" in printed and "skipped xnli_dev: " in printed


def test_a_row_that_cannot_be_used_is_named(tmp_path: Path):
    path = tmp_path / "xnli.dev.jsonl"
    write_json(path, [ROWS[0], {"language": "de", "gold_label": "neutral", "pairID": "1", "sentence1": "a"}])
    with pytest.raises(DataError, match="found no 'sentence2'; the row has language, gold_label") as caught:
        converted(main, tmp_path)
    assert str(caught.value).startswith(f"{path}, line 2: ")


def test_what_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(DataError, match=r"xnli.dev.tsv in XNLI-1.0 .*multinli.train.en.tsv.*--data_dir"):
        main(["--root_dir", str(tmp_path)])


def test_from_the_release_to_the_scores_of_each_language(tmp_path: Path):
    publish(tmp_path)
    converted(main, tmp_path)
    found = trained(tmp_path, RUN, "xnli", encoder="bert-tiny-multilingual-cased", task_def=TASK_DEF)
    assert {name: scores["uids"] for name, scores in found.items()} == {
        f"xnli_{language}_{split}": [f"{language}-1", f"{language}-2"]
        for language in ("de", "en") for split in ("dev", "test")
    }  # fmt: skip
    assert all("ACC" in scores["metrics"] for scores in found.values())


def test_the_encoder_is_a_multilingual_one(tmp_path: Path):
    for kind, encoder in (("bert", "bert-base-multilingual-cased"), ("xlmr", "xlm-roberta-base")):
        (call,) = calls_of(RUN, "d", kind, "base", "xnli_de", 16, 2, folder=tmp_path)
        assert (call["init_checkpoint"], call["data_dir"]) == (encoder, f"d/{encoder}")
        assert (call["train_datasets"], call["test_datasets"]) == ("xnli_de", "xnli")
        assert call["launcher"] == "torchrun --nproc_per_node 2"
    finished = run_script(RUN, "d", "gpt", "base", "xnli", 16, 1, folder=tmp_path)
    assert finished.returncode == 2 and "xlmr" in finished.stderr
