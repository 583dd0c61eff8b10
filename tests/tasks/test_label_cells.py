"""Cells of a label column: the same class may be written in several ways."""

from __future__ import annotations

import pytest

from data_utils.metrics import Metric
from data_utils.task_def import DataFormat, TaskType
from data_utils.vocab import Vocabulary
from tasks import get_task
from tasks.definition import TaskDef
from tasks.table_rows import fields_of_row


def label_of(names: list[str] | None, cell: object) -> str:
    vocabulary = None if names is None else Vocabulary.from_labels(names)
    definition = TaskDef(
        vocabulary, 2, DataFormat.PremiseOnly, TaskType.Classification, (Metric.ACC,),
        ["train", "dev"], False, None, None, None, None, None,
    )  # fmt: skip
    return str(get_task(definition).label_fields({"premise": "a"}, cell)["label"])


@pytest.mark.parametrize(
    ("names", "cell", "expected"),
    [
        (["1", "2"], 2.0, "2"),
        (["1.0", "2.0"], 2, "2.0"),
        (["1.0", "2.0"], "2", "2.0"),
        (["1", "1.0"], "1.0", "1.0"),
        (["1", "1.0"], "1", "1"),
        (["False", "True"], True, "True"),
        (["FALSE", "TRUE"], "true", "TRUE"),
        (["false", "true"], "TRUE", "true"),
        (["true", "True"], "True", "True"),
        (["bad", "good"], "Good", "Good"),
        (["no", "yes"], "true", "true"),
        (["a", "b"], "2.0", "2.0"),
        (None, "1.0", "1"),
    ],
)
def test_a_class_by_its_name_or_number(names: list[str] | None, cell: object, expected: str) -> None:
    assert label_of(names, cell) == expected


def test_blanks_at_the_ends_of_a_text_stay_as_in_training() -> None:
    assert fields_of_row(DataFormat.PremiseOnly, (" red\t ",)) == {"premise": " red  "}
    pair = {"question": " who ", "context": "\u00a0he "}
    assert fields_of_row(DataFormat.CLUE_SPAN, (" who ", "\u00a0he ")) == pair
    assert fields_of_row(DataFormat.PremiseOnly, (" \t",)) is None
    assert fields_of_row(DataFormat.PremiseOnly, (2.5,)) == {"premise": "2.5"}
