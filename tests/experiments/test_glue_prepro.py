import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from data_utils.errors import DataError, FlagError
from experiments.glue.glue_layouts import HUB_SOURCES, LAYOUTS
from experiments.glue.glue_prepro import main
from tasks.definition import TaskDefs

GLUE = Path(__file__).parents[2] / "experiments" / "glue" / "glue_task_def.yml"


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def run(root: Path, *flags: str) -> dict[str, str]:
    """The TSVs that the command writes, by name."""
    main(["--root_dir", str(root), *flags])
    return {path.name: path.read_text(encoding="utf-8") for path in (root / "canonical_data").iterdir()}


def test_tasks_and_splits_are_those_of_the_yaml():
    task_defs = TaskDefs(GLUE)
    assert set(LAYOUTS) == set(HUB_SOURCES) == set(task_defs.names)
    for task in task_defs.names:
        task_def = task_defs.get_task_def(task)
        assert [part.split for part in LAYOUTS[task][0].parts] == task_def.split_names
        assert list(HUB_SOURCES[task].splits) == task_def.split_names


def test_cola_in_glues_layout(tmp_path: Path):
    write(tmp_path / "CoLA" / "train.tsv", "gj04\t1\t\tOne.", "gj04\t0\t*\tTwo “quoted”")
    write(tmp_path / "CoLA" / "test.tsv", "index\tsentence", "7\tThree")
    assert run(tmp_path) == {"cola_train.tsv": "0\t1\tOne.\n1\t0\tTwo “quoted”\n", "cola_test.tsv": "7\t\tThree\n"}


@pytest.mark.parametrize("folder", ["CoLA", "cola", "."])
def test_cola_in_its_public_layout_has_glues_development_set(tmp_path: Path, folder: str):
    for name, sentence in (("in_domain_train", "A"), ("in_domain_dev", "B"), ("out_of_domain_dev", "C")):
        write(tmp_path / folder / f"{name}.tsv", f"gj04\t1\t\t{sentence}")
    assert run(tmp_path) == {
        "cola_train.tsv": "0\t1\tA\n",
        "cola_dev.tsv": "0\t1\tB\n1\t1\tC\n",
        "cola_indomain_dev.tsv": "0\t1\tB\n",
        "cola_outofdomain_dev.tsv": "0\t1\tC\n",
    }


def test_columns_are_found_by_their_names(tmp_path: Path):
    write(
        tmp_path / "MNLI" / "dev_matched.tsv",
        "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t9\ta\tb\tneutral\tentailment",
        "1\t9\tc\td\tneutral\t-",
        "2\t9\te\tf\tneutral\tneutral",
    )
    write(tmp_path / "MNLI" / "test_mismatched.tsv", "index\tpromptID\tsentence1\tsentence2", "0\t9\ta\tb")
    write(tmp_path / "MRPC" / "train.tsv", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t5\t6\ta\tb")
    write(tmp_path / "SST-2" / "train.tsv", "sentence\tlabel", "a b\t1")
    write(tmp_path / "STS-B" / "dev.tsv", "index\tgenre\tsentence1\tsentence2\tscore", "3\tx\ta\tb\t2.500")
    write(tmp_path / "QNLI" / "dev.tsv", "index\tquestion\tsentence\tlabel", "0\twhy\tso\tnot_entailment")
    write(tmp_path / "RTE" / "train.tsv", "index\tsentence1\tsentence2\tlabel", "0\ta\tb\tentailment")
    write(tmp_path / "WNLI" / "train.tsv", "index\tsentence1\tsentence2\tlabel", "0\ta\tb\t1")
    write(tmp_path / "snli_1.0" / "snli_1.0_test.txt", "gold_label\tsentence1\tsentence2", "-\ta\tb", "neutral\tc\td")
    write(tmp_path / "SciTail" / "tsv_format" / "scitail_1.0_train.tsv", "p\th\tentails")
    assert run(tmp_path) == {
        "mnli_matched_dev.tsv": "0\tentailment\ta\tb\n2\tneutral\te\tf\n",
        "mnli_mismatched_test.tsv": "0\t\ta\tb\n",
        "mrpc_train.tsv": "0\t1\ta\tb\n",
        "sst_train.tsv": "0\t1\ta b\n",
        "stsb_dev.tsv": "3\t2.500\ta\tb\n",
        "qnli_dev.tsv": "0\tnot_entailment\twhy\tso\n",
        "rte_train.tsv": "0\tentailment\ta\tb\n",
        "wnli_train.tsv": "0\t1\ta\tb\n",
        "snli_test.tsv": "0\tneutral\tc\td\n",
        "scitail_train.tsv": "0\tentails\tp\th\n",
    }


def test_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    write(tmp_path / "QQP" / "train.tsv", header, "5\t1\t2\ta\tb\t0", "6\t1\t2\tcut", "7\t1\t2\tc\td\t1")
    assert run(tmp_path)["qqp_train.tsv"] == "0\t0\ta\tb\n1\t1\tc\td\n"
    output = capsys.readouterr().out
    assert "2 examples; 1 left out, with the wrong number of columns" in output
    assert "skipped qqp_dev" in output


@pytest.mark.parametrize(
    ("lines", "where", "words"),
    [
        (["gj04\t1\t\tA", "gj04\t1\tB"], "line 2", "expected 4 .*found 3"),
        (["gj04\t1\t\tA\tB"], "line 1", "expected 4 .*found 5"),
        (["gj04\t\t\tA"], "line 1", "label is empty"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, lines: list[str], where: str, words: str):
    write(tmp_path / "CoLA" / "train.tsv", *lines)
    with pytest.raises(DataError, match=words) as caught:
        run(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'CoLA' / 'train.tsv'}, {where}: ")
    assert not list((tmp_path / "canonical_data").iterdir())


def test_a_header_without_the_columns_is_told(tmp_path: Path):
    write(tmp_path / "RTE" / "train.tsv", "index\tsentence1\tsentence2", "0\ta\tb")
    with pytest.raises(DataError, match="line 1: expected a header with label"):
        run(tmp_path)


def test_what_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(DataError, match="MNLI.*--data_dir"):
        run(tmp_path)
    write(tmp_path / "elsewhere" / "CoLA" / "train.tsv", "gj04\t1\t\tA")
    with pytest.raises(DataError, match="rte: RTE"):
        run(tmp_path, "--data_dir", str(tmp_path / "elsewhere"), "--tasks", "cola,rte")
    capsys.readouterr()
    assert list(run(tmp_path, "--data_dir", str(tmp_path / "elsewhere"))) == ["cola_train.tsv"]
    assert "skipped, not in" in capsys.readouterr().out
    with pytest.raises(FlagError, match=r"'mnly' \(did you mean 'mnli'\?\)"):
        run(tmp_path, "--tasks", "mnly")


class HubRows(list):
    def __init__(self, rows: list[dict[str, object]]):
        super().__init__(rows)
        self.features = {"label": SimpleNamespace(names=["entailment", "not_entailment"])}


def test_hub_examples_have_the_canonical_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def load_dataset(path: str, config: str | None) -> dict[str, HubRows]:
        row = {"label": 1, "sentence1": "a\tb\nc", "sentence2": "d", "question": "q", "sentence": "s"}
        assert path == "nyu-mll/glue" and config in ("rte", "mrpc")
        return {
            "train": HubRows([{**row, "idx": 4}, {**row, "idx": 5, "label": -1}]),
            "validation": HubRows([{**row, "idx": 0, "label": 0}]),
            "test": HubRows([{**row, "idx": 0, "label": -1}]),
        }

    library = ModuleType("datasets")
    monkeypatch.setattr(library, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert run(tmp_path, "--from_hub", "--tasks", "rte,mrpc") == {
        "rte_train.tsv": "4\tnot_entailment\ta b c\td\n",
        "rte_dev.tsv": "0\tentailment\ta b c\td\n",
        "rte_test.tsv": "0\t\ta b c\td\n",
        "mrpc_train.tsv": "4\t1\ta b c\td\n",
        "mrpc_dev.tsv": "0\t0\ta b c\td\n",
        "mrpc_test.tsv": "0\t\ta b c\td\n",
    }


def test_a_hub_out_of_reach_and_a_missing_library_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def load_dataset(path: str, config: str | None) -> None:
        raise ConnectionError("no route\nto host")

    library = ModuleType("datasets")
    monkeypatch.setattr(library, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", library)
    with pytest.raises(DataError, match=r"rte: nyu-mll/glue cannot be fetched from the hub \(no route\)"):
        run(tmp_path, "--from_hub", "--tasks", "rte")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FlagError, match="pip install datasets"):
        run(tmp_path, "--from_hub", "--tasks", "rte")


def test_flags_of_mtdnns_command_that_have_no_use(tmp_path: Path):
    write(tmp_path / "CoLA" / "train.tsv", "gj04\t1\t\tIt is.")
    assert set(run(tmp_path, "--seed", "13")) == {"cola_train.tsv"}
    with pytest.raises(FlagError, match="--old_glue: QNLI as ranking, .* is not made here; leave it out"):
        run(tmp_path, "--old_glue")
