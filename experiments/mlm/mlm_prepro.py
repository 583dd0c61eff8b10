"""Plain text or JSON lines → the canonical text of the task `mlm`: a sentence a line, an empty line after a document.

    python experiments/mlm/mlm_prepro.py --train FILE... [--dev FILE...]

A file is plain text of that form (WikiText's and BookCorpus's files are), or JSON lines with a `text`, MT-DNN's form,
whose paragraphs are split by empty lines and become lines. They go to `ROOT/mlm_train.txt` and `ROOT/mlm_dev.txt`;
without `--dev`, every `--dev_every`-th document goes to the second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# The command is run as a file, so Python finds only this folder by itself.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.errors import DataError, OneLineParser, at_least, run_command_line
from data_utils.readers import read_documents
from data_utils.storage.text_files import parse_json, read_lines, write_lines

SEPARATORS_OF_TEXT = {0: " "}  # JSON may hold NUL, text files may not
JSON_SUFFIXES = (".json", ".jsonl")

Document = Sequence[str]  # its lines


def documents(path: Path) -> Iterator[Document]:
    """The documents of a file, without empty ones.

    Raises:
        DataError: the file cannot be read, or a line of JSON has no text.
    """
    if path.suffix not in JSON_SUFFIXES:
        yield from (document["sentences"] for document in read_documents(path))
        return
    for number, line in read_lines(path):
        try:
            text = parse_json(line, path, number)["text"].translate(SEPARATORS_OF_TEXT)
            lines = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError('found no JSON object with a text; accepted: {"text": "…"}', path, number) from error
        if found := [line for line in lines if line]:
            yield found


def write_documents(path: Path, found: Iterable[Document]) -> None:
    """Write documents as canonical text and print their number.

    Raises:
        DataError: there are no documents; nothing is written.
    """
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for document in found:
            yield from (*document, "")
            count += 1
        if not count:
            raise DataError(
                "found no document for it; accepted: --dev FILE, or a --dev_every that texts suffice for", path
            )

    write_lines(path, lines())
    print(f"{path}: {count} documents")


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the files."""
    parser = OneLineParser(description="Text → the canonical text of masked language modeling")
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="files of text to train on")
    parser.add_argument("--dev", type=Path, nargs="+", help="files of text to evaluate on")
    parser.add_argument(
        "--dev_every",
        type=at_least(2),
        default=50,
        help="without --dev: every N-th document goes to the dev set (default: %(default)s)",
    )
    parser.add_argument(
        "--root_dir", type=Path, default=Path("data/canonical_data"), help="folder of the output (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    for split, kept_out in (("dev", True), ("train", False)):
        files = args.dev if kept_out and args.dev else args.train
        found = (document for path in files for document in documents(path))
        if not args.dev:
            numbered = enumerate(found, start=1)
            found = (document for number, document in numbered if (number % args.dev_every == 0) == kept_out)
        write_documents(args.root_dir / f"mlm_{split}.txt", found)


if __name__ == "__main__":
    run_command_line(main)
