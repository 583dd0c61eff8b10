"""SuperGLUE's public files → canonical TSV, `ROOT/canonical_data/TASK_SPLIT.tsv`.

    python experiments/superglue/superglue_prepro.py --data_dir DIR

DIR holds the folders of the public release: `BoolQ`, `CB`, `COPA`, `MultiRC`, `ReCoRD`, `RTE`, `WiC`, `WSC`, each with
`train.jsonl`, `val.jsonl` and `test.jsonl`. Texts are combined as in MT-DNN:

BoolQ     passage | question
COPA      premise | "because" or "so" and an alternative, for each of the two
MultiRC   passage | question and an answer, an example for each answer
ReCoRD    passage | query with an entity in its gap; in training a wrong entity and a right one, a pair for each wrong
          one; elsewhere every entity of the passage
WiC       word and first sentence | second sentence
WSC       text | text with the noun in the pronoun's place
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

# The command is run as a file, so Python finds only this folder by itself.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.errors import run_command_line
from data_utils.readers import GAP
from experiments.canonical import (
    NO_LABEL,
    Example,
    Reading,
    Row,
    convert_tasks,
    list_field,
    prepro_args,
    prepro_parser,
    read_examples,
    write_canonical,
)

FILES = {"train": "train.jsonl", "dev": "val.jsonl", "test": "test.jsonl"}  # by split
TRUTH = {"true": "1", "false": "0", "1": "1", "0": "0"}
MARKS = '.,"“”'


def truth(row: Row, split: str) -> str:
    """The class of a label that is true or false, or 1 or 0; empty if a test set has no label.

    Raises:
        KeyError: the row of another split has no label.
        ValueError: the label is something else.
    """
    if split == "test" and "label" not in row:
        return NO_LABEL
    found = str(row["label"]).lower()
    if found not in TRUTH:
        raise ValueError(f"found the label {row['label']!r}, accepted: true or false")
    return TRUTH[found]


def boolq(row: Row, split: str) -> Iterator[Example]:
    yield str(row["idx"]), truth(row, split), row["passage"], row["question"]


def pair(row: Row, split: str) -> Iterator[Example]:
    """An example of CB or RTE, whose labels are names."""
    label = row.get("label", NO_LABEL) if split == "test" else row["label"]
    yield str(row["idx"]), label, row["premise"], row["hypothesis"]


def copa(row: Row, split: str) -> Iterator[Example]:
    uid, gold = str(row["idx"]), truth(row, split)
    relevances = {"0": "1,0", "1": "0,1", NO_LABEL: NO_LABEL}[gold]
    link = {"cause": "because", "effect": "so"}[row["question"]]
    yield (
        uid,
        f"{uid}-0,{uid}-1",
        relevances,
        row["premise"],
        *(f"{link} {row[name]}" for name in ("choice1", "choice2")),
    )


def multirc(row: Row, split: str) -> Iterator[Example]:
    passage = row["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            uid = f"{row['idx']}_{question['idx']}_{answer['idx']}"
            yield uid, truth(answer, split), passage["text"], f"{question['question']} {answer['text']}"


def record(row: Row, split: str, reading: Reading, seed: int) -> Iterator[Example]:
    text = row["passage"]["text"]
    entities = [text[entity["start"] : entity["end"] + 1] for entity in row["passage"]["entities"]]
    entities = list(dict.fromkeys(entities))
    for question in row["qas"]:
        uid, answers = str(question["idx"]), []
        if split != "test" or "answers" in question:
            answers = list(dict.fromkeys(answer["text"] for answer in question["answers"]))
        if answers and not set(answers) & set(entities):
            reading.leave_out("whose answers are no entities of the passage")
            continue
        draw = random.Random(f"{seed}/{uid}")
        offered = [entities]
        if split == "train":
            wrong = [entity for entity in entities if entity not in answers]
            offered = [draw.sample([entity, draw.choice(answers)], 2) for entity in wrong]
        for choices in offered:
            relevances = ",".join("1" if choice in answers else "0" for choice in choices) if answers else NO_LABEL
            gaps = [question["query"].replace(GAP, choice) for choice in choices]
            yield uid, list_field(choices), list_field(answers), relevances, text, *gaps
        if not offered:
            reading.leave_out("whose passage names no wrong entity")


def wic(row: Row, split: str) -> Iterator[Example]:
    yield str(row["idx"]), truth(row, split), f"{row['word']} {row['sentence1']}", row["sentence2"]


def wsc(row: Row, split: str) -> Iterator[Example]:
    """Replaces the pronoun by the noun; punctuation next to it, such as a comma, is unchanged."""
    target, words = row["target"], row["text"].split()
    pronoun, noun = (target[name].strip(MARKS) for name in ("span2_text", "span1_text"))
    count = len(pronoun.split())
    # the index of a few published examples is one too low
    for first in (target["span2_index"], target["span2_index"] + 1):
        place = " ".join(words[first : first + count])
        if place.strip(MARKS) == pronoun:
            filled = [*words[:first], place.replace(pronoun, noun), *words[first + count :]]
            yield str(row["idx"]), truth(row, split), row["text"], " ".join(filled)
            return
    raise ValueError(f"found no {pronoun!r} at word {target['span2_index']} of the text")


Reader = Callable[..., Iterator[Example]]  # of a row and its split


def readers(reading: Reading, seed: int) -> dict[str, tuple[str, Reader]]:
    """By task: its folder in the release, and the function that turns a row into examples."""
    return {
        "boolq": ("BoolQ", boolq),
        "cb": ("CB", pair),
        "copa": ("COPA", copa),
        "multirc": ("MultiRC", multirc),
        "record": ("ReCoRD", partial(record, reading=reading, seed=seed)),
        "rte": ("RTE", pair),
        "wic": ("WiC", wic),
        "wsc": ("WSC", wsc),
    }


TASKS = {task: folder for task, (folder, _) in readers(Reading(), 0).items()}


def convert(task: str, data_dir: Path, target_dir: Path, seed: int) -> bool:
    """Convert a task's files; returns whether there are any."""
    folder = data_dir / TASKS[task]
    there = {split: folder / name for split, name in FILES.items() if (folder / name).is_file()}
    for split, path in there.items():
        reading = Reading()
        _, examples_of = readers(reading, seed)[task]
        reading.examples = read_examples(path, partial(examples_of, split=split))
        write_canonical(target_dir / f"{task}_{split}.tsv", reading)
    return bool(there)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the tasks named by --tasks, or all that have files."""
    parser = prepro_parser("SuperGLUE → canonical TSV", TASKS, seed="of ReCoRD's training pairs")
    args = prepro_args(parser, argv, TASKS)
    folders = {task: [folder] for task, folder in TASKS.items()}
    convert_tasks(args, folders, partial(convert, data_dir=args.data_dir, target_dir=args.target_dir, seed=args.seed))


if __name__ == "__main__":
    run_command_line(main)
