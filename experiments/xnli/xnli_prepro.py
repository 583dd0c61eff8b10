"""XNLI's public files → canonical TSV, `ROOT/canonical_data/xnli_SPLIT.tsv` and `xnli_LANGUAGE_SPLIT.tsv`.

    python experiments/xnli/xnli_prepro.py --data_dir DIR

DIR holds `XNLI-1.0` (`xnli.dev.tsv` and `xnli.test.tsv`, or `.jsonl`), and to train on one of:

XNLI-MT-1.0    `multinli/multinli.train.LANGUAGE.tsv`, MNLI in 15 languages: the set `xnli_LANGUAGE` of each
multinli_1.0   `multinli_1.0_train.jsonl` (or `.txt`), MNLI in English
MNLI           `train.tsv`, the same in GLUE's layout

`xnli_train` is the English one. `xnli_dev` and `xnli_test` hold all languages, the data sets `xnli_LANGUAGE` one each.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# The command is run as a file, so Python finds only this folder by itself.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.errors import DataError, run_command_line
from experiments.canonical import (
    Example,
    Reading,
    Row,
    first_file,
    first_of,
    prepro_args,
    prepro_parser,
    read_examples,
    write_canonical,
)

FOLDERS, KINDS = ("XNLI-1.0", "XNLI", "."), ("tsv", "jsonl")
TRANSLATIONS = ("XNLI-MT-1.0/multinli", "XNLI-MT-1.0", "multinli")
TRANSLATED = "multinli.train.{}.tsv"
ENGLISH = (
    *(f"{folder}/{TRANSLATED.format('en')}" for folder in TRANSLATIONS),
    "multinli_1.0/multinli_1.0_train.jsonl",
    "multinli_1.0/multinli_1.0_train.txt",
    "MNLI/train.tsv",
)
LABELS = {"contradictory": "contradiction"}  # the translations' word
UNDECIDED = "-"
LANGUAGE = re.compile(r"[A-Za-z0-9-]{1,35}")


def pair(row: Row, reading: Reading, numbers: Iterator[int]) -> Iterator[Example]:
    """The example in a row; its id is language and pair, or the row's number if the file has no languages."""
    number, label = next(numbers), first_of(row, "gold_label", "label")
    if label == UNDECIDED:
        reading.leave_out("without an agreed label")
        return
    uid = f"{row['language']}-{row['pairID']}" if "language" in row else str(number)
    yield uid, LABELS.get(label, label), first_of(row, "sentence1", "premise"), first_of(row, "sentence2", "hypo")


def convert(path: Path, target: Path, language: str | None = None) -> None:
    """Write the examples of a file, all of them or those of one language."""
    reading, numbers = Reading(), itertools.count()

    def examples_of(row: Row) -> Iterator[Example]:
        wanted = language is None or row["language"] == language
        return pair(row, reading, numbers) if wanted else iter(())

    reading.examples = read_examples(path, examples_of)
    write_canonical(target, reading)


def languages(path: Path) -> list[str]:
    """The languages of a development or test set, sorted.

    Raises:
        DataError: a language's name cannot be used in a file name.
    """
    found = sorted({language for (language,) in read_examples(path, lambda row: [(row["language"],)])})
    for language in found:
        if not LANGUAGE.fullmatch(language):
            raise DataError(
                f"found the language {language!r}; accepted: up to 35 letters, digits and '-', such as zh", path
            )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the sets that have files."""
    args = prepro_args(prepro_parser("XNLI → canonical TSV"), argv)
    english = first_file(args.data_dir, ENGLISH)
    sets = {
        split: first_file(args.data_dir, [f"{folder}/xnli.{split}.{kind}" for folder in FOLDERS for kind in KINDS])
        for split in ("dev", "test")
    }
    if not any([english, *sets.values()]):
        raise DataError(
            f"found neither xnli.dev.tsv in {' or '.join(FOLDERS)} nor one of {', '.join(ENGLISH)}; put them there or "
            "name their folder with --data_dir",
            args.data_dir,
        )
    if english is None:
        print(f"skipped xnli_train: {args.data_dir} has none of {', '.join(ENGLISH)}")
    else:
        convert(english, args.target_dir / "xnli_train.tsv")
    for folder in TRANSLATIONS:
        for path in sorted((args.data_dir / folder).glob(TRANSLATED.format("*"))):
            language = path.name.split(".")[2]
            convert(path, args.target_dir / f"xnli_{language}_train.tsv")
    for split, path in sets.items():
        if path is None:
            print(f"skipped xnli_{split}: {args.data_dir} has no xnli.{split}.tsv in {' or '.join(FOLDERS)}")
            continue
        convert(path, args.target_dir / f"xnli_{split}.tsv")
        for language in languages(path):
            convert(path, args.target_dir / f"xnli_{language}_{split}.tsv", language)


if __name__ == "__main__":
    run_command_line(main)
