r"""Answers of a trained model: to the texts of a table, or as a score file of token JSON lines.

    python predict.py --model checkpoint --from reviews.csv --text review --output answers.csv

    python predict.py --task sst --prep_input data/canonical_data/bert-base-uncased/sst_dev.json --with_label \
        --checkpoint checkpoint/model_0.pt --score sst_dev_scores.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_utils.errors import FlagError, OneLineParser, at_least, nearest
from mt_dnn.configuration.flags import truth
from mt_dnn.prediction.model_path import check_model_path

if TYPE_CHECKING:
    from data_utils.tables import Table

LONGEST = 512  # tokens of an example of a token file
OF_TABLES = (
    "model",
    "text",
    "label",
    "label_separator",
    "sentence",
    "columns",
    "output",
    "all_scores",
    "encoding",
    "tokenizer",
)
OF_TOKEN_FILES = ("checkpoint", "task_id", "with_label", "by_window")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    table = parser.add_argument_group("a table")
    table.add_argument("--model", help="folder of a run, a checkpoint, or a folder of --save_hf")
    table.add_argument(
        "--from", dest="source", type=Path, help="table with texts: .csv, .tsv, .jsonl, .json, .parquet, .xlsx, .conll"
    )
    table.add_argument("--text", help="columns with the texts, comma-separated: premise,hypothesis or question,context")
    table.add_argument(
        "--output", type=Path, help="table to write, with columns of answers; its ending says the format"
    )
    table.add_argument(
        "--label", help="column with the right answers: compute the metrics; of several labels a column each"
    )
    table.add_argument("--label_separator", help="what divides several labels in the one label column, such as ';'")
    table.add_argument(
        "--sentence", help="of a table with a word a row: its column that says to which sentence a word belongs"
    )
    table.add_argument(
        "--columns", help="names for a .csv, .tsv or .txt whose first line is a row already, with commas between them"
    )
    table.add_argument("--all_scores", action="store_true", help="add the probability of every class")
    table.add_argument("--encoding", help="of a text file without a mark of it (default: utf-8)")
    table.add_argument("--tokenizer", help="hub name or local folder (default: the one that the model names)")
    tokens = parser.add_argument_group("a token file")
    tokens.add_argument("--checkpoint", help="checkpoint of train.py or of MT-DNN")
    tokens.add_argument("--prep_input", help="token JSON lines, as prepro_std.py writes them")
    tokens.add_argument("--task_def", default="experiments/glue/glue_task_def.yml", help="task definitions (YAML)")
    tokens.add_argument("--task_id", type=int, help="number of the task's head; default: by --task's name")
    tokens.add_argument("--with_label", action="store_true", help="the file has labels: compute the metrics")
    tokens.add_argument("--score", default="scores.json", help="score file to write (default: %(default)s)")
    tokens.add_argument(
        "--by_window",
        action="store_true",
        help="of texts that are read in windows: an entry a window, for prepare_distillation_data.py; no metrics",
    )
    both = parser.add_argument_group("both")
    both.add_argument(
        "--task", help="name of the task (default: of a table all that the model has, of a token file the only one)"
    )
    both.add_argument("--metric", help="metrics, comma-separated (default: the task definition's)")
    both.add_argument(
        "--max_seq_len",
        type=at_least(1),
        help=f"longest example in tokens (default: of a table the model's, of a token file {LONGEST})",
    )
    both.add_argument(
        "--batch_size_eval", type=at_least(1), help="examples a batch (default: as many as make a full batch of tokens)"
    )
    both.add_argument(
        "--cuda",
        type=truth,
        nargs="?",
        const=True,
        metavar="true|false",
        help="use the GPU (default: where there is one)",
    )
    return _checked(parser.parse_args(argv))


def _checked(arguments: argparse.Namespace) -> argparse.Namespace:
    """Check that the flags are either those of a table or those of a token file.

    Raises:
        FlagError: both, neither, or a flag is missing.
    """
    if (arguments.source is None) == (arguments.prep_input is None):
        found = "neither" if arguments.source is None else "both"
        raise FlagError(f"--from and --prep_input: found {found}, accepted: one of them")
    of_table = arguments.source is not None
    given, needed = ("--from", ("model", "text", "output")) if of_table else ("--prep_input", ("checkpoint",))
    for name in needed:
        if getattr(arguments, name) is None:
            raise FlagError(f"--{name}: is missing; {given} needs it")
    for name in OF_TOKEN_FILES if of_table else OF_TABLES:
        if getattr(arguments, name) not in (None, False):
            hint = "; --label COLUMN names the right answers" if name == "with_label" else ""
            hint = "; --model takes it" if name == "checkpoint" else hint
            raise FlagError(f"--{name}: does not go with {given}; accepted: to leave it out{hint}")
    if arguments.label_separator is not None and (arguments.label is None or not arguments.label_separator.strip(" ")):
        raise FlagError(
            f"--label_separator: found {arguments.label_separator!r}, accepted: a text that divides the labels in the "
            "column of --label"
        )
    return arguments


def answer_a_table(arguments: argparse.Namespace) -> None:
    """Read a table and write it with answers. The files are checked before the model is loaded."""
    from data_utils.log_wrapper import create_logger
    from data_utils.tables import column_of, read_table
    from data_utils.tables.content import suffix_of
    from data_utils.tables.sources import WORD_SUFFIXES
    from data_utils.tables.table import named_columns

    output: Path = arguments.output
    metrics_file = _checked_output(output, arguments.source)
    check_model_path(arguments.model)
    header = None if arguments.columns is None else named_columns(arguments.columns, (), "columns")
    table: Table = read_table(arguments.source, encoding=arguments.encoding, columns=header)
    text = tuple(column_of(table, name, "text") for name in named_columns(arguments.text, table.columns, "text"))
    labels = () if arguments.label is None else named_columns(arguments.label, table.columns, "label")
    label = tuple(column_of(table, name, "label") for name in labels)
    if arguments.sentence is not None:
        column_of(table, arguments.sentence, "sentence")
    if suffix_of(output) in WORD_SUFFIXES and table.layout.kind != "conll":
        raise FlagError(
            f"--output: found {output.name!r}, accepted: another ending, as the table has no lines of words"
        )
    log = create_logger(None)
    for note in table.notes:
        log.warning("%s", note)
    from transformers.utils.logging import disable_progress_bar

    from mt_dnn.prediction import load_model
    from mt_dnn.prediction.table_answers import Request, answer_table
    from mt_dnn.prediction.text_model import named_metrics

    disable_progress_bar()
    metrics = None if arguments.metric is None else named_metrics(arguments.metric.split(","))
    model = load_model(
        arguments.model,
        task=arguments.task,
        tokenizer=arguments.tokenizer,
        max_seq_len=arguments.max_seq_len,
        cuda=arguments.cuda,
    )
    request = Request(
        table,
        text,
        label,
        arguments.all_scores,
        metrics,
        arguments.batch_size_eval,
        arguments.label_separator,
        arguments.sentence,
    )
    answer_table(model, request, output, metrics_file)


def _checked_output(output: Path, source: Path) -> Path:
    """Check that the table can be written, and return the path of its metrics.

    Raises:
        UserError: an unknown ending, a folder that is missing or cannot be written to, or the input itself.
    """
    from data_utils.storage.files import writable_folder
    from data_utils.tables import SUFFIXES
    from data_utils.tables.content import stem_of, suffix_of

    if suffix_of(output) not in SUFFIXES:
        raise FlagError(f"--output: found {output.name!r}, accepted: a name that ends in {', '.join(SUFFIXES)}")
    if not output.parent.is_dir():
        raise FlagError(f"--output: there is no folder {output.parent}; accepted: a folder that is there")
    if output.is_dir():
        raise FlagError(f"--output: {output} is a folder, accepted: a file")
    metrics_file = output.with_name(f"{stem_of(output)}_metrics.json")
    for written in (output, metrics_file):
        if written.resolve() == source.resolve() or (written.exists() and source.exists() and written.samefile(source)):
            raise FlagError(f"--output: {written} is the table that is read, accepted: another file")
    writable_folder(output.parent)
    return metrics_file


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


def score_a_token_file(arguments: argparse.Namespace) -> None:
    """Write the score file of a file of token JSON lines."""
    from data_utils.log_wrapper import create_logger
    from data_utils.readers import write_score_file
    from mt_dnn.batcher import Collater, SingleTaskDataset
    from mt_dnn.checkpoints.build import restore_network
    from mt_dnn.configuration.config import Config
    from mt_dnn.data.run_data import check_fits_encoder
    from mt_dnn.inference import eval_model, score_examples
    from mt_dnn.model import MTDNNModel
    from mt_dnn.prediction.text_model import named_metrics
    from mt_dnn.training.processes import build_accelerator
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
        metrics = named_metrics(arguments.metric.split(","))
    longest = arguments.max_seq_len or LONGEST
    dataset = SingleTaskDataset(arguments.prep_input, False, task_id, task_def, longest)
    check_fits_encoder(dataset, network.bert)
    if arguments.by_window and not dataset.task.in_windows:
        raise FlagError(f"--by_window: {task_def.task_type.name} reads no windows; leave it out")
    if arguments.with_label and not dataset.has_labels:
        raise FlagError(f"--with_label: {arguments.prep_input} has no labels")
    if arguments.with_label:
        check_metrics(task_def, metrics, "--metric" if arguments.metric is not None else "metric_meta")
    config = Config.from_flags({"cuda": arguments.cuda is True})
    accelerator = build_accelerator(config, use_gpu=arguments.cuda is not False)
    model = MTDNNModel(config, flat["task_def_list"], accelerator=accelerator, network=network)
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


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_args(argv)
    if arguments.source is not None:
        answer_a_table(arguments)
    else:
        score_a_token_file(arguments)
