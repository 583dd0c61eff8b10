"""Files in CoNLL's columns → canonical TSV: names, parts of speech and chunks, `OUTPUT/{ner,pos,chunk}_SPLIT.tsv`.

    python experiments/ner/prepro.py --data_dir DIR

DIR holds `train.txt`, `valid.txt` and `test.txt`, or `eng.train`, `eng.testa` and `eng.testb`: a word a line, a blank
line after each sentence, `-DOCSTART-` before each document. A line's first column is the word; in CoNLL-2003 its last
three are part of speech, chunk and name. A file with two or three columns holds words and names, in the first and the
last. Tags are taken as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# The command is run as a file, so Python finds only this folder by itself.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.errors import DataError, OneLineParser, run_command_line
from data_utils.tables.conll import COLUMN, DOCUMENT
from data_utils.tables.content import lines_of, read_text
from experiments.canonical import UNUSED_SEED, Example, Reading, first_file, list_field, write_canonical

FILES = {
    "train": ("train.txt", "eng.train"),
    "dev": ("valid.txt", "dev.txt", "eng.testa"),
    "test": ("test.txt", "eng.testb"),
}
COLUMNS = {"ner": -1, "chunk": -2, "pos": -3}  # of a line, by task
Sentence = list[list[str]]  # the columns of each word


def read_sentences(path: Path, encoding: str | None = None) -> Iterator[Sentence]:
    """The columns of each word of each sentence, two at least.

    Args:
        encoding: as in `read_text`.

    Raises:
        DataError: a line with another number of columns than the lines before.
    """
    sentence: Sentence = []
    width = 0
    text, _ = read_text(path, encoding)
    for number, line in enumerate(lines_of(text), start=1):
        columns = COLUMN.findall(line.removesuffix("\n").removesuffix("\r"))
        if columns and columns[0] != DOCUMENT:
            found = min(len(columns), 1 + len(COLUMNS))  # CoNLL-2003 may have more between word and tags
            width = width or found
            if found != width or width < 2:
                expected = f"{width} columns as above" if width > 1 else "a word and its tag or tags"
                raise DataError(f"expected {expected}, found {line.rstrip()!r}", path, number)
            sentence.append(columns)
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def tasks_of(sentences: Sequence[Sentence]) -> list[str]:
    """The tasks that a file has tags of: names alone, or all three."""
    return list(COLUMNS) if len(sentences[0][0]) > len(COLUMNS) else ["ner"]


def examples(sentences: Iterable[Sentence], task: str) -> Iterator[Example]:
    """A sentence's number, labels and words."""
    for number, sentence in enumerate(sentences):
        labels = [columns[COLUMNS[task]] for columns in sentence]
        yield str(number), list_field(labels), list_field(columns[0] for columns in sentence)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the splits that are there, each for all three tasks."""
    parser = OneLineParser(description="files in CoNLL's columns → canonical TSV")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of the files")
    parser.add_argument("--seed", type=int, help=UNUSED_SEED)
    parser.add_argument("--encoding", help="of files without a mark of it (default: utf-8), such as latin-1")
    parser.add_argument("--output_dir", type=Path, default=Path("data/canonical_data"), help="folder of the TSVs")
    args = parser.parse_args(argv)
    found = {split: first_file(args.data_dir, names) for split, names in FILES.items()}
    if not any(found.values()):
        names = "; ".join(" or ".join(names) for names in FILES.values())
        raise DataError(f"found none of {names}; name their folder with --data_dir", args.data_dir)
    # All files are read before one is written.
    read = {split: list(read_sentences(path, args.encoding)) for split, path in found.items() if path is not None}
    for split, path in found.items():
        if path is None:
            print(f"skipped {split}: {args.data_dir} has no {' or '.join(FILES[split])}")
        elif not read[split]:
            raise DataError("found no sentence; accepted: a word and its tag or tags a line", path)
    for split, sentences in read.items():
        for task in tasks_of(sentences):
            write_canonical(args.output_dir / f"{task}_{split}.tsv", Reading(examples(sentences, task)))


if __name__ == "__main__":
    run_command_line(main)
