import io
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from data_utils.errors import TaskDefError, UserError
from data_utils.metrics import Metric
from data_utils.task_def import DataFormat, TaskType
from mt_dnn.loss import LossCriterion
from tasks.definition import TaskDef, TaskDefs, checkpoint_globals

REPOSITORY = Path(__file__).parents[2]
FIXTURES = REPOSITORY / "tests" / "fixtures"
GLUE = REPOSITORY / "experiments" / "glue" / "glue_task_def.yml"

SHORTEST = """
cola:
  data_format: PremiseOnly
  task_type: Classification
  n_class: 2
  metric_meta: [ACC]
"""


def read(folder: Path, text: str) -> TaskDefs:
    path = folder / "tasks.yml"
    path.write_text(text, encoding="utf-8")
    return TaskDefs(path)


def mistakes(folder: Path, text: str) -> list[str]:
    """The lines of the error, without the file's name."""
    with pytest.raises(TaskDefError) as caught:
        read(folder, text)
    lines = str(caught.value).splitlines()
    prefix = f"{folder / 'tasks.yml'}: "
    assert all(line.startswith(prefix) for line in lines)
    return [line.removeprefix(prefix) for line in lines]


def test_glue_has_its_tasks():
    task_defs = TaskDefs(GLUE)
    expected = {"cola", "mnli", "mrpc", "qnli", "qqp", "rte", "scitail", "snli", "sst", "stsb", "wnli"}
    assert set(task_defs.names) == expected
    assert task_defs.get_task_names() == list(task_defs.names)
    labels = {
        name: list(task_def.label_vocab.tok2ind)
        for name in task_defs.names
        if (task_def := task_defs.get_task_def(name)).label_vocab is not None
    }
    assert labels == {
        "mnli": ["contradiction", "neutral", "entailment"],
        "snli": ["contradiction", "neutral", "entailment"],
        "qnli": ["not_entailment", "entailment"],
        "rte": ["not_entailment", "entailment"],
        "scitail": ["neutral", "entails"],
    }
    metrics = {name: task_defs.get_task_def(name).metric_meta for name in ("cola", "mrpc", "qqp", "stsb", "wnli")}
    assert metrics == {
        "cola": (Metric.ACC, Metric.MCC),
        "mrpc": (Metric.ACC, Metric.F1),
        "qqp": (Metric.ACC, Metric.F1),
        "stsb": (Metric.Pearson, Metric.Spearman),
        "wnli": (Metric.ACC,),
    }


def test_golden_yaml_is_accepted():
    ner = TaskDefs(FIXTURES / "prepro" / "task_def.yml").get_task_def("ner")
    assert (ner.task_type, ner.data_type, ner.n_class) == (TaskType.SeqenceLabeling, DataFormat.Seqence, 12)


def test_defaults_are_those_of_mt_dnn(tmp_path: Path):
    regression = (
        SHORTEST.replace("cola", "stsb").replace("Classification", "Regression").replace("n_class: 2", "n_class: 1")
    )
    task_defs = read(tmp_path, SHORTEST + regression)
    cola, stsb = task_defs.get_task_def("cola"), task_defs.get_task_def("stsb")
    assert cola.split_names == ["train", "dev", "test"]
    assert (cola.enable_san, cola.dropout_p, cola.actf, cola.label_vocab) == (False, None, None, None)
    assert cola.loss is LossCriterion.CeCriterion and stsb.loss is LossCriterion.MseCriterion
    assert cola.kd_loss is LossCriterion.MseCriterion
    assert cola.adv_loss is LossCriterion.SymKlCriterion and stsb.adv_loss is LossCriterion.MseCriterion


def test_labels_may_be_whole_numbers_and_a_byte_order_mark_is_no_mistake(tmp_path: Path):
    task_def = read(tmp_path, "\ufeff" + SHORTEST + "  labels: [0, 1]\n").get_task_def("cola")
    assert task_def.label_vocab is not None and task_def.label_vocab.tok2ind == {"0": 0, "1": 1}


def test_every_mistake_is_told_at_once(tmp_path: Path):
    found = mistakes(
        tmp_path,
        """
cola:
  data_format: PremisOnly
  task_type: Classification
  n_class: 0
  metric_meta: [ACC, MC]
  loss: CeCritrion
  dropout: 0.1
stsb:
  data_format: PremiseAndOneHypothesis
  task_type: Regression
  n_class: 2
  metric_meta: ACC
  actf: tahn
  dropout_p: 1.5
  enable_san: 1
m_n:
  task_type: Classification
  labels: [yes, a, a]
  n_class: 2
cola: 5
""",
    )
    for expected in (
        "task 'cola': found 2 times",
        "task 'cola', key 'data_format': found 'PremisOnly' (did you mean 'PremiseOnly'?), accepted: PremiseOnly, ",
        "task 'cola', key 'n_class': found 0, accepted: ",
        "task 'cola', key 'metric_meta': found 'MC' (did you mean 'MCC'?), accepted: ",
        "task 'cola', key 'loss': found 'CeCritrion' (did you mean 'CeCriterion'?), accepted: CeCriterion, ",
        "task 'cola', key 'dropout': found an unknown key (did you mean 'dropout_p'?), accepted: ",
        "task 'stsb', key 'n_class': found 2, accepted: 1 for Regression",
        "task 'stsb', key 'metric_meta': found 'ACC', accepted: a list of ACC, ",
        "task 'stsb', key 'actf': found 'tahn', accepted: ",
        "task 'stsb', key 'dropout_p': found 1.5, accepted: ",
        "task 'stsb', key 'enable_san': found 1, accepted: true or false",
        "task 'm_n': found the name 'm_n', accepted: a text without '_'",
        "task 'm_n', key 'data_format': missing, accepted: ",
        "task 'm_n', key 'metric_meta': missing, accepted: ",
        "task 'm_n', key 'labels': found True, accepted: ",
        "task 'm_n', key 'labels': found 3 labels, accepted: as many as n_class (2)",
        "task 'm_n', key 'labels': found 'a' 2 times, accepted: once",
        "task 'cola': found 5, accepted: a mapping of the keys ",
    ):
        matching = [line for line in found if line.startswith(expected)]
        assert len(matching) == 1, expected
        found.remove(matching[0])
    assert not found


def test_a_wrong_name_alone_in_a_list_is_one_mistake(tmp_path: Path):
    (told,) = mistakes(tmp_path, SHORTEST.replace("[ACC]", "[AC]"))
    assert told.startswith("task 'cola', key 'metric_meta': found 'AC' (did you mean 'AUC'?), accepted: a list of ")
    (told,) = mistakes(tmp_path, SHORTEST.replace("[ACC]", "[]"))
    assert told.startswith("task 'cola', key 'metric_meta': found [], accepted: a list of ")


def test_accepted_task_types_have_a_model(tmp_path: Path):
    (told,) = mistakes(tmp_path, SHORTEST.replace("task_type: Classification", "task_type: Clasification"))
    assert "SpanSeqenceLabeling" in told and "EncSeqenceGeneration" not in told


def test_a_key_that_stands_twice_is_told(tmp_path: Path):
    assert mistakes(tmp_path, SHORTEST + "  n_class: 2\n") == [
        "task 'cola', key 'n_class': found 2 times, accepted: once"
    ]


@pytest.mark.parametrize("text", ["", "cola", "[cola]", "{}", "cola: {", "cola: !!python/object:os.system {}", "7: {}"])
def test_what_is_no_task_definition_is_told(tmp_path: Path, text: str):
    assert mistakes(tmp_path, text)


def test_a_missing_file_is_told(tmp_path: Path):
    with pytest.raises(TaskDefError, match="nothing.yml: missing"):
        TaskDefs(tmp_path / "nothing.yml")


def test_a_task_is_found_by_its_datasets_name():
    task_defs = TaskDefs(GLUE)
    assert task_defs.task_of("mnli_matched") == "mnli" and task_defs.task_of("cola") == "cola"
    assert "cola" in task_defs and "mnli_matched" not in task_defs
    with pytest.raises(UserError, match=r"'coal' \(did you mean 'cola'\?\); accepted: cola, mnli") as caught:
        task_defs.task_of("coal_dev")
    assert "\n" not in str(caught.value)


def weights_only(content: object) -> object:
    """`content` after a way through a checkpoint."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals(checkpoint_globals()):
        return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", ["cola", "mnli", "stsb"])
def test_a_definition_survives_the_weights_only_loader(name: str):
    task_def = TaskDefs(GLUE).get_task_def(name)
    loaded = weights_only(task_def)
    assert isinstance(loaded, OrderedDict)
    again = TaskDef.from_attributes(loaded)
    labels, labels_again = vars(task_def).pop("label_vocab"), vars(again).pop("label_vocab")
    assert vars(again) == vars(task_def)
    assert (labels and vars(labels)) == (labels_again and vars(labels_again))


def test_a_definition_of_mt_dnn_is_read():
    """The checkpoint was written by MT-DNN; its items are `repr` strings, which are made here too."""
    with torch.serialization.safe_globals(checkpoint_globals()):
        content = torch.load(FIXTURES / "mtdnn_run" / "model_0.pt", weights_only=True)
    glue = TaskDefs(GLUE)
    for name, loaded in zip(("cola", "mnli", "stsb"), content["config"]["task_def_list"], strict=True):
        read_back, expected = TaskDef.from_attributes(loaded), glue.get_task_def(name)
        assert list(read_back) == list(loaded)
        for key in set(loaded) - {"label_vocab"}:
            assert read_back[key] == loaded[key] == expected[key]
    assert vars(read_back) == vars(expected)


@pytest.mark.parametrize(
    ("attribute", "wrong"),
    [("n_class", "2"), ("n_class", 0), ("data_type", 1), ("metric_meta", (0,)), ("loss", 0), ("label_vocab", {})],
)
def test_a_damaged_definition_in_a_checkpoint_is_refused(attribute: str, wrong: object):
    loaded = weights_only(TaskDefs(GLUE).get_task_def("cola"))
    setattr(loaded, attribute, wrong)
    with pytest.raises(TaskDefError, match=attribute):
        TaskDef.from_attributes(loaded)
    delattr(loaded, attribute)
    with pytest.raises(TaskDefError, match=f"{attribute} is missing"):
        TaskDef.from_attributes(loaded)


REPEATED = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{chr(ord(name) - 1)}'] * 9)}]\n" for name in "bcdefghijk"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (REPEATED, "holds more than 50000 values, those of aliases included"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: " + "[" * 500, "nested too deeply"),
        ("a: {n_class: " + "9" * 5000 + "}", "line 1: holds a value that cannot be read"),
        ("\na: {dropout_p: 2001-13-45}", "line 2: holds a value that cannot be read"),
        ('a: {labels: ["\\ud800"]}', "half a surrogate pair"),
        ("#" * (1 << 19) + "\n", "accepted: at most 524288"),
    ],
    ids=["aliases", "itself", "deep", "digits", "date", "half pair", "large"],
)
def test_a_file_beyond_a_limit_is_told_in_a_line(tmp_path: Path, text: str, words: str):
    (mistake,) = mistakes(tmp_path, text) if "line" not in words else [told(tmp_path, text)]
    assert words in mistake


def told(folder: Path, text: str) -> str:
    with pytest.raises(TaskDefError) as caught:
        read(folder, text)
    return str(caught.value)


def test_aliases_within_the_limits_are_read(tmp_path: Path):
    text = SHORTEST.replace("cola:", "cola: &plain") + "  labels: [a, b]\nsst:\n  <<: *plain\n  labels: [c, d]\n"
    labels = read(tmp_path, text).get_task_def("sst").label_vocab
    assert labels is not None and list(labels.tok2ind) == ["c", "d"]
