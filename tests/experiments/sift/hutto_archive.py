"""A source distribution in the layout of vaderSentiment's, with made-up ratings."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from experiments.sift.data.hutto import ARCHIVE, DOMAINS, INNER_ARCHIVE


def packed(members: Mapping[str, bytes]) -> bytes:
    """A gzipped tar archive of files by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_archive(folder: Path, texts: Mapping[str, str]) -> Path:
    """The archive with the content of each domain's file."""
    inner = packed({DOMAINS[domain]: text.encode() for domain, text in texts.items()})
    path = folder / ARCHIVE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed({INNER_ARCHIVE: inner}))
    return path


def rated_lines(domain: str, count: int) -> str:
    """Lines of alternating sign; of three words each, no two lines alike."""
    words = {1: "good fine", -1: "bad poor"}
    signs = [1 if number % 2 else -1 for number in range(count)]
    return "".join(f"{number}\t{sign * 2}\t{words[sign]} {domain}{number}\r\n" for number, sign in enumerate(signs))
