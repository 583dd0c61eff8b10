r"""Give the examples of a token file a teacher's scores, for `train.py --mkd_opt 1`.

    python prepare_distillation_data.py --task mnli --add_soft_label --std_input mnli_train.json \
        --score mnli_train_scores.json --std_output distilled/mnli_train.json

The score file has the teacher's scores of the same examples, from `predict.py`; for tasks that split long texts into
windows, from `predict.py --by_window`. Probabilities are written as logarithms (of multi-label tasks, as log-odds),
because criteria compare logits; a regression's outputs and the logits of spans are written unchanged. Without
--add_soft_label the teacher's answer replaces the label.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_utils.errors import DataError, FlagError, OneLineParser, run_command_line
from data_utils.log_wrapper import create_logger
from data_utils.readers import read_scores, read_token_json
from data_utils.storage.text_files import write_lines
from mt_dnn.data.dataset import SingleTaskDataset
from tasks import get_task, not_distilled
from tasks.definition import TaskDefs


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task_def", default="experiments/glue/glue_task_def.yml", help="task definitions (YAML)")
    parser.add_argument("--task", required=True, help="name of the task")
    parser.add_argument(
        "--add_soft_label", action="store_true", help="keep the label and add the teacher's scores as softlabel"
    )
    parser.add_argument("--std_input", type=Path, required=True, help="token JSON lines, as prepro_std.py writes them")
    parser.add_argument("--score", type=Path, required=True, help="the teacher's score file")
    parser.add_argument("--std_output", type=Path, required=True, help="token JSON lines to write")
    return parser.parse_args(argv)


def scores_of(path: Path, dataset: SingleTaskDataset) -> list[np.ndarray]:
    """A teacher's scores of each example of a dataset, (numbers,).

    Raises:
        DataError: the score file has other examples.
    """
    task = dataset.task
    uids = dataset.uids if task.in_windows else task.uids(dataset)
    lengths = [dataset[index]["lengths"] for index in range(len(dataset))]
    units = lengths
    if len(uids) > len(dataset):  # an entry is one of an example's sequences
        units = [(length,) for own in lengths for length in own]
    counts = [task.soft_count(own) for own in units]
    try:
        parts = read_scores(path, uids, lambda _: [(count,) for count in counts])[1]
    except DataError as error:
        if task.in_windows:
            raise DataError(f"{error}; of {task.task_def.task_type.name} predict.py --by_window writes it") from error
        raise
    ends = np.cumsum([task.soft_count(own) for own in lengths])[:-1]
    return np.split(np.concatenate(parts), ends)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_args(argv)
    create_logger(None, quiet=True)
    task_def = TaskDefs(arguments.task_def).get_task_def(arguments.task)
    task = get_task(task_def)
    if not task.distils:
        raise FlagError(f"--task: {arguments.task}: {not_distilled(task)}")
    scores = scores_of(arguments.score, SingleTaskDataset(arguments.std_input, False, 0, task_def))

    def taught() -> Iterator[str]:
        samples = read_token_json(arguments.std_input, task.many_rows)
        for (_, sample), own in zip(samples, scores, strict=True):
            soft = {"softlabel": task.soft_label(own).tolist()}
            yield json.dumps(sample | (soft if arguments.add_soft_label else {"label": task.taught_label(own)}))

    count = write_lines(arguments.std_output, taught())
    print(f"{arguments.std_output}: {count} examples")


if __name__ == "__main__":
    run_command_line(main)
