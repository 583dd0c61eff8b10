r"""Compute the metrics of a score file, with the labels of a token file or a canonical TSV.

python calc_metrics.py --task mnli --std_input data/canonical_data/mnli_matched_dev.tsv --score scores.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from data_utils.errors import DataError, FlagError, OneLineParser, run_command_line
from data_utils.log_wrapper import create_logger
from data_utils.prepro import Split
from data_utils.readers import read_canonical_tsv, read_scores
from data_utils.storage.text_files import with_null

if TYPE_CHECKING:
    from tasks import Task

OF_TSV = ("Classification", "Regression", "MultiLabel")  # task types whose label is one field of a line


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task_def", default="experiments/glue/glue_task_def.yml", help="task definitions (YAML)")
    parser.add_argument("--task", required=True, help="name of the task")
    parser.add_argument(
        "--std_input", type=Path, required=True, help="file with the labels: token JSON lines or canonical TSV"
    )
    parser.add_argument("--score", type=Path, required=True, help="score file of train.py, predict.py or MT-DNN")
    return parser.parse_args(argv)


def labels_of(path: Path, task: Task) -> Any:
    """An object with `labels` and `uids` of a file's examples; for a token file, its dataset.

    Raises:
        UserError: an example has no label, or a file of this kind has no labels for the task's type.
    """
    from mt_dnn.data.dataset import SingleTaskDataset

    kind = task.task_def.task_type
    if task.own_labels:
        raise FlagError(f"--task: {kind.name} has no labels in a file; accepted: all other types")
    if path.suffix == ".json":
        dataset = SingleTaskDataset(path, False, 0, task.task_def)
        if dataset.labels is None:
            raise DataError("has no labels", path)
        return dataset
    if kind.name not in OF_TSV:
        names = ", ".join(OF_TSV)
        raise FlagError(f"--std_input: found {path.suffix} for {kind.name}; accepted: .json (.tsv for {names})")
    split = Split(path, task, is_train=True)
    fields = list(enumerate(read_canonical_tsv(path, task.task_def.data_type), start=1))
    labels = [task.parse_label(split, number, own["label"]) for number, own in fields]
    return SimpleNamespace(labels=np.array(labels, dtype=task.label_type), uids=[own["uid"] for _, own in fields])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the metrics of the task's definition as one line of JSON on stdout, and notes about them on stderr."""
    arguments = parse_args(argv)
    # After the flags, since what these import takes seconds.
    from data_utils.metrics import undefined
    from tasks import Entries, check_metrics, get_task
    from tasks.definition import TaskDefs

    create_logger(None, quiet=True)
    task_def = TaskDefs(arguments.task_def).get_task_def(arguments.task)
    task = get_task(task_def)
    check_metrics(task_def, task_def.metric_meta, f"{arguments.task_def}: task {arguments.task!r}, key 'metric_meta'")
    source = labels_of(arguments.std_input, task)
    golds, uids = task.golds(source), list(task.uids(source))
    predictions, scores = read_scores(arguments.score, uids, lambda found: task.shapes_of_scores(found, golds))
    values: Any = np.stack(scores) if len({own.shape for own in scores}) == 1 else scores
    answers: Any = [np.array(own) if isinstance(own, list) else own for own in predictions]
    found = task.measure(task_def.metric_meta, golds, Entries(uids, answers, values))
    for note in [*task.notes(task_def.metric_meta, golds), *undefined(found)]:
        print(note, file=sys.stderr)
    print(json.dumps(with_null(found)))


if __name__ == "__main__":
    run_command_line(main)
