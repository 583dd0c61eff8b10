r"""Give the examples of a token file a teacher's scores, for `train.py --mkd_opt 1`.

    python prepare_distillation_data.py --task mnli --add_soft_label --std_input mnli_train.json \
        --score mnli_train_scores.json --std_output distilled/mnli_train.json

The score file is the teacher's for the same examples, as `predict.py` writes it. Its probabilities are written as their
logarithms, for criteria compare logits; a regression's outputs as they are. Without --add_soft_label the teacher's
answer takes the label's place.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.errors import FlagError, run_command_line
from data_utils.readers import read_scores, read_token_json
from data_utils.task_def import TaskType
from data_utils.text_files import write_lines
from experiments.exp_def import TaskDefs

SMALLEST = 1e-6  # a probability of 0 has no logarithm
BUILT = (TaskType.Classification, TaskType.Regression)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task_def", default="experiments/glue/glue_task_def.yml", help="task definitions (YAML)")
    parser.add_argument("--task", required=True, help="name of the task")
    parser.add_argument("--add_soft_label", action="store_true", help="keep the label and add the softlabel")
    parser.add_argument("--std_input", type=Path, required=True, help="token JSON lines, as prepro_std.py writes them")
    parser.add_argument("--score", type=Path, required=True, help="the teacher's score file")
    parser.add_argument("--std_output", type=Path, required=True, help="token JSON lines to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_args(argv)
    task_def = TaskDefs(arguments.task_def).get_task_def(arguments.task)
    if task_def.task_type not in BUILT:
        accepted = " and ".join(kind.name for kind in BUILT)
        raise FlagError(f"--task: {arguments.task} is of {task_def.task_type.name}; accepted: {accepted}")
    regression = task_def.task_type == TaskType.Regression
    uids = [str(sample.get("uid")) for _, sample in read_token_json(arguments.std_input)]
    predictions, scores = read_scores(arguments.score, uids, task_def.n_class)

    def taught() -> Iterator[str]:
        samples = read_token_json(arguments.std_input)
        for (_, sample), prediction, own in zip(samples, predictions, scores, strict=True):
            yield json.dumps(sample | _lesson(prediction, own))

    def _lesson(prediction: Any, own: np.ndarray) -> dict[str, Any]:
        if arguments.add_soft_label:
            return {"softlabel": (own if regression else np.log(own.clip(min=SMALLEST))).tolist()}
        return {"label": float(own[0]) if regression else prediction}

    count = write_lines(arguments.std_output, taught())
    print(f"{arguments.std_output}: {count} examples")


if __name__ == "__main__":
    run_command_line(main)
