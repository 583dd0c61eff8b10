r"""Metrics of a score file, against the labels of a token file or of a canonical TSV.

python calc_metrics.py --task mnli --std_input data/canonical_data/mnli_matched_dev.tsv --score scores.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from data_utils.errors import DataError, FlagError, run_command_line
from data_utils.log_wrapper import create_logger
from data_utils.prepro import Split
from data_utils.readers import read_canonical_tsv, read_scores
from data_utils.task_def import TaskType
from experiments.exp_def import TaskDef, TaskDefs
from mt_dnn.dataset import SingleTaskDataset
from tasks import Values, get_task

OF_TSV = (TaskType.Classification, TaskType.Regression)
OF_TOKENS = (*OF_TSV, TaskType.SeqenceLabeling)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task_def", default="experiments/glue/glue_task_def.yml", help="task definitions (YAML)")
    parser.add_argument("--task", required=True, help="name of the task")
    parser.add_argument("--std_input", type=Path, required=True, help="the labels: token JSON lines, or canonical TSV")
    parser.add_argument("--score", type=Path, required=True, help="score file of train.py, predict.py or MT-DNN")
    return parser.parse_args(argv)


def labels_of(path: Path, task_def: TaskDef) -> Any:
    """What has `labels` and `uids` of a file's examples: a dataset for token files.

    Raises:
        UserError: an example without label; a kind of task that the file is no source of labels for.
    """
    accepted = OF_TOKENS if path.suffix == ".json" else OF_TSV
    task = get_task(task_def)
    if task.view not in accepted:
        names = ", ".join(kind.name for kind in accepted)
        raise FlagError(f"--std_input: {path.suffix} of {task_def.task_type.name}; accepted: {names}")
    if path.suffix == ".json":
        dataset = SingleTaskDataset(path, False, 0, task_def)
        if dataset.labels is None:
            raise DataError("has no labels", path)
        return dataset
    split = Split(path, task, is_train=True)
    fields = list(enumerate(read_canonical_tsv(path, task_def.data_type), start=1))
    labels = [task.parse_label(split, number, own["label"]) for number, own in fields]
    return SimpleNamespace(labels=np.array(labels, dtype=task.label_type), uids=[own["uid"] for _, own in fields])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the metrics of the task's definition as one line of JSON."""
    arguments = parse_args(argv)
    create_logger(None, quiet=True)
    task_def = TaskDefs(arguments.task_def).get_task_def(arguments.task)
    golds = labels_of(arguments.std_input, task_def)
    uids = list(golds.uids)
    predictions, scores = read_scores(arguments.score, uids, task_def.n_class)
    for uid, gold, own in zip(uids, golds.labels, predictions, strict=True):
        if np.shape(gold) != np.shape(own):
            expected = f"{len(gold)} labels" if np.shape(gold) else "one label"
            raise DataError(f"the prediction for {uid!r} is {own}; the example has {expected}", arguments.score)
    alike = len({own.shape for own in scores}) == 1 and scores[0].ndim == 1
    values: Values = np.stack(scores) if alike else scores
    answers: Values = np.array(predictions) if alike else [np.array(own) for own in predictions]
    print(json.dumps(get_task(task_def).evaluate(golds, task_def.metric_meta, values, answers).metrics))


if __name__ == "__main__":
    run_command_line(main)
