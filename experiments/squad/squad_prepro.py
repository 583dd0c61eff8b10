"""SQuAD as its publishers hand it out → canonical TSV, `ROOT/canonical_data/squad_SPLIT.tsv` and `squad-v2_SPLIT.tsv`.

    python experiments/squad/squad_prepro.py --data_dir DIR

DIR holds the public files, `train-v1.1.json` and `dev-v1.1.json`, `train-v2.0.json` and `dev-v2.0.json`, or one of the
two versions. MT-DNN's names are known too: `squad/train.json`, `squad_v2/train.json`, `squad_train.json`, ….
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# The command is run as a file, so Python finds only this folder by itself.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.errors import DataError, OneLineParser, run_command_line
from data_utils.storage.text_files import read_json
from experiments.canonical import SEPARATORS, Example, Reading, checked_example, write_canonical

SPLITS = ("train", "dev")
# where a task's file of a split may be, below the data folder
FILES = {
    "squad": ("{}-v1.1.json", "squad/{}-v1.1.json", "squad/{}.json", "squad_{}.json"),
    "squad-v2": ("{}-v2.0.json", "squad_v2/{}-v2.0.json", "squad_v2/{}.json", "squad-v2_{}.json"),
}
STRUCTURE = "data: [{paragraphs: [{context, qas: [{id, question, answers: [{text, answer_start}]}]}]}]"


def read_squad(path: Path, task: str, split: str = "train") -> Reading:
    """The questions of a file; those without an answer are left out of version 1.1.

    A training question is left out too if an answer is not where the file says. A development question stays, since the
    official score counts it: its answer is taken where it stands nearest, or has the start -1 where it is nowhere.

    Raises:
        DataError: while they are read: the file is no JSON, or not built as SQuAD's.
    """
    reading = Reading()
    reading.examples = _read_squad(path, task, split, reading)
    return reading


def _read_squad(path: Path, task: str, split: str, reading: Reading) -> Iterator[Example]:
    content = read_json(path)
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    for example in _read_question(paragraph["context"], question, task, split, reading):
                        yield checked_example(example)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"is not built as SQuAD's files are ({error!r}); accepted: {STRUCTURE}", path) from error


def _read_question(
    context: str, question: dict[str, Any], task: str, split: str, reading: Reading
) -> Iterator[Example]:
    # a character for a character, so that answers stay where they are
    context = context.translate(SEPARATORS)
    impossible = task == "squad-v2" and question.get("is_impossible", False)
    found = [] if impossible else question["answers"]
    texts = [answer["text"].translate(SEPARATORS) for answer in found]
    starts = [answer["answer_start"] for answer in found]
    found_at = [_nearest(context, text, start) for text, start in zip(texts, starts, strict=True)]
    if not texts and not impossible:
        reading.leave_out("without an answer")
    elif found_at != starts and split == "train":
        reading.leave_out("whose answer is not where it is said to be")
    else:
        if found_at != starts:
            reading.note("kept though an answer is not where it is said to be, as the official score counts it")
        starts = found_at
        yield question["id"], json.dumps(texts, ensure_ascii=False), str(starts), context, question["question"]


def _nearest(context: str, text: str, start: int) -> int:
    """Where a text stands in the context, the nearest place to `start`; -1 where it does not."""
    if start >= 0 and context.startswith(text, start):
        return start
    places = [place for place in range(len(context)) if context.startswith(text, place)]
    return min(places, key=lambda place: abs(place - start), default=-1)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the versions that are there."""
    parser = OneLineParser(description="SQuAD → canonical TSV")
    parser.add_argument("--root_dir", type=Path, default=Path("data"), help="TSVs go to its folder canonical_data")
    parser.add_argument("--data_dir", type=Path, help="folder of the public files; default: --root_dir")
    args = parser.parse_args(argv)
    data_dir = args.data_dir or args.root_dir
    absent = []
    for task, names in FILES.items():
        for split in SPLITS:
            paths = [data_dir / name.format(split) for name in names]
            path = next(filter(Path.is_file, paths), None)
            if path is None:
                absent.append(names[0].format(split))
                continue
            write_canonical(args.root_dir / "canonical_data" / f"{task}_{split}.tsv", read_squad(path, task, split))
    if len(absent) == len(FILES) * len(SPLITS):
        raise DataError(f"found none of {', '.join(absent)}; put SQuAD's public files there", data_dir)
    if absent:
        print(f"skipped, not in {data_dir}: {', '.join(absent)}")


if __name__ == "__main__":
    run_command_line(main)
