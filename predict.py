r"""Score a file of token JSON lines with a checkpoint.

    python predict.py --task sst --prep_input data/canonical_data/bert-base-uncased/sst_dev.json --with_label \
        --checkpoint checkpoint/model_0.pt --score sst_dev_scores.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from data_utils.errors import FlagError, OneLineParser, at_least, nearest, run_command_line
from mt_dnn.configuration.flags import truth


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task_def", default="experiments/glue/glue_task_def.yml", help="task definitions (YAML)")
    parser.add_argument("--task", help="name of the task; may be left out where the checkpoint has one task")
    parser.add_argument("--task_id", type=int, help="number of the task's head; default: by --task's name")
    parser.add_argument("--prep_input", required=True, help="token JSON lines, as prepro_std.py writes them")
    parser.add_argument("--with_label", action="store_true", help="the file has labels: compute the metrics")
    parser.add_argument("--score", default="scores.json", help="score file to write (default: %(default)s)")
    parser.add_argument(
        "--by_window",
        action="store_true",
        help="of texts that are read in windows: an entry a window, for prepare_distillation_data.py; no metrics",
    )
    parser.add_argument("--metric", help="metrics, comma-separated (default: the task definition's)")
    parser.add_argument("--max_seq_len", type=at_least(1), default=512, help="longest example in tokens (default: 512)")
    parser.add_argument(
        "--batch_size_eval", type=at_least(1), help="examples a batch (default: as many as make a full batch of tokens)"
    )
    parser.add_argument(
        "--cuda",
        type=truth,
        nargs="?",
        const=True,
        metavar="true|false",
        help="use the GPU (default: where there is one)",
    )
    parser.add_argument("--checkpoint", required=True, help="checkpoint of train.py or of MT-DNN")
    return parser.parse_args(argv)


def task_id_of(arguments: argparse.Namespace, config: dict[str, Any]) -> int:
    """The head's number: `--task_id`, or by the order in which the checkpoint's tasks were trained."""
    count = len(config["task_def_list"])
    names = list(dict.fromkeys(dataset.split("_")[0] for dataset in config.get("train_datasets", [])))
    if arguments.task_id is not None:
        if not 0 <= arguments.task_id < count:
            raise FlagError(f"--task_id: found {arguments.task_id}, accepted: 0 to {count - 1}")
        return arguments.task_id
    if arguments.task is None and count == 1:
        return 0
    if arguments.task not in names:
        hint = nearest(arguments.task or "", names)
        raise FlagError(f"--task: found {arguments.task!r}, accepted: {', '.join(names)}{hint}")
    return names.index(arguments.task)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_args(argv)
    from data_utils.log_wrapper import create_logger
    from data_utils.metrics import Metric
    from data_utils.readers import write_score_file
    from mt_dnn.batcher import Collater, SingleTaskDataset
    from mt_dnn.checkpoints.build import restore_network
    from mt_dnn.configuration.config import Config
    from mt_dnn.data.run_data import check_fits_encoder
    from mt_dnn.inference import eval_model, score_examples
    from mt_dnn.model import MTDNNModel
    from tasks import Evaluation, check_metrics
    from tasks.definition import TaskDefs

    log = create_logger(None)
    network, flat = restore_network(arguments.checkpoint)
    task_id = task_id_of(arguments, flat)
    task_def = flat["task_def_list"][task_id]
    if arguments.task is not None:
        defined = TaskDefs(arguments.task_def).get_task_def(arguments.task)
        if (defined.task_type, defined.n_class) != (task_def.task_type, task_def.n_class):
            raise FlagError(
                f"--task: {arguments.task} is {defined.task_type.name} with {defined.n_class} outputs in "
                f"{arguments.task_def}, head {task_id} is {task_def.task_type.name} with {task_def.n_class}"
            )
    metrics = task_def.metric_meta
    if arguments.metric is not None:
        unknown = [name for name in arguments.metric.split(",") if name not in Metric.__members__]
        if unknown:
            raise FlagError(f"--metric: found {unknown[0]!r}, accepted: {', '.join(Metric.__members__)}")
        metrics = tuple(Metric[name] for name in arguments.metric.split(","))
    dataset = SingleTaskDataset(arguments.prep_input, False, task_id, task_def, arguments.max_seq_len)
    check_fits_encoder(dataset, network.bert)
    if arguments.by_window and not dataset.task.in_windows:
        raise FlagError(f"--by_window: {task_def.task_type.name} reads no windows; leave it out")
    if arguments.with_label and not dataset.has_labels:
        raise FlagError(f"--with_label: {arguments.prep_input} has no labels")
    if arguments.with_label:
        check_metrics(task_def, metrics, "--metric" if arguments.metric is not None else "metric_meta")
    model = MTDNNModel(
        Config.from_flags({} if arguments.cuda is None else {"cuda": arguments.cuda}),
        flat["task_def_list"],
        network=network,
    )
    collater = Collater(getattr(network.bert.config, "pad_token_id", None) or 0)
    if arguments.by_window:
        scores, predictions = score_examples(model, dataset, collater, arguments.batch_size_eval)
        found = Evaluation({}, predictions, scores, None, dataset.uids)
    else:
        found = eval_model(model, dataset, metrics, collater, arguments.batch_size_eval, arguments.with_label)
    write_score_file(arguments.score, found.metrics, found.predictions, found.uids, found.scores)
    for name, value in found.metrics.items():
        log.info("%s %s: %.2f", dataset.name, name, value)
    log.info("%d examples scored: %s", len(dataset), arguments.score)


if __name__ == "__main__":
    run_command_line(main)
