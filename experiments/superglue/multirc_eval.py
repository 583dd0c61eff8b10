r"""Compute MultiRC's two metrics of a score file: F1 over all answers, and the share of questions all answered right.

    python experiments/superglue/multirc_eval.py --std_input DATA/multirc_dev.json --score scores.json

Prints one line of JSON with SuperGLUE's names, F1a and EM, in percent. The part of an answer's id before its
last `_` is its question's id, as superglue_prepro.py writes it [Khashabi et al. 2018; Wang et al. 2019].
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# The command is run as a file, so Python finds only this folder by itself.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.errors import DataError, OneLineParser, run_command_line
from data_utils.log_wrapper import create_logger
from data_utils.metrics import Metric, calc_metrics
from data_utils.readers import read_scores
from mt_dnn.data.dataset import SingleTaskDataset
from tasks import get_task
from tasks.definition import TaskDefs


def exact_match(uids: Sequence[str], right: np.ndarray) -> float:
    """The share of questions with all answers classified right, in percent.

    Args:
        uids: of the answers; the part before the last `_` is the question's id.
        right: whether each answer was classified right, (answers,).
    """
    questions: dict[str, bool] = {}
    for uid, is_right in zip(uids, right.tolist(), strict=True):
        question = uid.rpartition("_")[0]
        questions[question] = questions.get(question, True) and is_right
    return 100 * float(np.mean(list(questions.values())))


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--std_input", type=Path, required=True, help="token JSON lines with labels")
    parser.add_argument("--score", type=Path, required=True, help="score file of train.py or predict.py")
    arguments = parser.parse_args(argv)
    create_logger(None, quiet=True)
    task_def = TaskDefs(Path(__file__).with_name("superglue_task_def.yml")).get_task_def("multirc")
    dataset = SingleTaskDataset(arguments.std_input, False, 0, task_def)
    if dataset.labels is None:
        raise DataError("has no labels", arguments.std_input)
    uids = list(dataset.uids)
    if not all("_" in uid for uid in uids):
        raise DataError("expected ids such as 3_5_0: of passage, question and answer", arguments.std_input)
    task = get_task(task_def)
    found, scores = read_scores(arguments.score, uids, lambda found: task.shapes_of_scores(found, dataset.labels))
    predictions = np.array(found)
    f1 = calc_metrics([Metric.F1], dataset.labels, predictions, np.stack(scores))[Metric.F1.name]
    print(json.dumps({"F1a": f1, "EM": exact_match(uids, predictions == np.asarray(dataset.labels))}))


if __name__ == "__main__":
    run_command_line(main)
