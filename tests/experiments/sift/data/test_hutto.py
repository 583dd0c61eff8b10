from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from data_utils.errors import DataError
from data_utils.readers import read_canonical_tsv
from data_utils.task_def import DataFormat
from experiments.sift.data import hutto
from experiments.sift.running.runs import TASK_DEF
from tasks.definition import TaskDefs
from tests.experiments.sift.hutto_archive import packed, rated_lines, write_archive

EMPTY = dict.fromkeys(hutto.DOMAINS, "")


def read(root: Path, name: str) -> list[tuple[str, str, str]]:
    rows = read_canonical_tsv(root / f"sentiment_{name}.tsv", DataFormat.PremiseOnly)
    return [(row["uid"], row["label"], row["premise"]) for row in rows]


def test_a_label_is_the_sign_of_a_rating_of_at_least_a_half(tmp_path: Path):
    lines = "1\t0.5\tjust enough\r\n2\t0.49\ttoo weak\r\n3\t-0.5\tbad enough\r\n4\t-0.49\ttoo weak too\r\n"
    domains = hutto.read_domains(write_archive(tmp_path, {**EMPTY, "movies": lines}))
    assert domains["movies"] == [
        ("movies-1", "positive", "just enough"),
        ("movies-3", "negative", "bad enough"),
    ]


def test_character_entities_are_undone_once_and_lines_end_at_the_newline_alone():
    content = "1\t2\ti &lt;3 &amp;lt; you\x85\u2028all &amp; more \r\n".encode()
    (example,) = hutto.parse_ratings(content, "tweets")
    assert example.text == "i <3 &lt; you\x85\u2028all & more"


@pytest.mark.parametrize(
    ("line", "complaint"), [("7\t1.5", "found 2 columns, expected 3"), ("7\tgood\ttext", "found rating 'good'")]
)
def test_a_malformed_line_is_told_with_its_number(line: str, complaint: str):
    with pytest.raises(DataError, match=f"tweets_GroundTruth.txt, line 2: {complaint}"):
        hutto.parse_ratings(f"1\t2\tfine\n{line}\n".encode(), "tweets")


def test_a_text_is_kept_once_over_all_domains(tmp_path: Path):
    texts = {
        "tweets": "1\t2\tSo  Good\r\n2\t-2\tso good\r\n",
        "amazon": "1\t2\tso GOOD \r\n2\t1\tfine\r\n",
        "movies": "1\t-1\tfine\r\n",
        "editorials": "",
    }
    domains = hutto.read_domains(write_archive(tmp_path, texts))
    kept = {domain: [example.uid for example in examples] for domain, examples in domains.items()}
    assert kept == {"tweets": ["tweets-1"], "amazon": ["amazon-2"], "movies": [], "editorials": []}


def test_the_split_is_70_10_20_disjoint_and_independent_of_the_order():
    examples = hutto.parse_ratings(rated_lines("tweets", 200).encode(), "tweets")
    parts = hutto.split(examples)
    assert {name: len(part) for name, part in parts.items()} == {"train": 140, "dev": 20, "test": 40}
    assert len({example.text for part in parts.values() for example in part}) == 200
    assert hutto.split(examples[::-1]) == parts
    # not a cut of the file's order: each part has examples from both halves of the file
    for part in parts.values():
        assert {int(example.uid.split("-")[1]) < 100 for example in part} == {True, False}


def test_the_files_are_canonical_and_fit_the_task_definition(tmp_path: Path):
    texts = {domain: rated_lines(domain, 10) for domain in hutto.DOMAINS}
    sizes = hutto.write_datasets(hutto.read_domains(write_archive(tmp_path, texts)), tmp_path)
    of_tweets = {"tweets_train": 7, "tweets_dev": 1, "tweets_test": 2}
    assert sizes == {**of_tweets, "amazon_test": 10, "movies_test": 10, "editorials_test": 10}
    assert {path.name for path in tmp_path.glob("*.tsv")} == {f"sentiment_{name}.tsv" for name in sizes}
    assert read(tmp_path, "amazon_test")[1] == ("amazon-1", "positive", "good fine amazon1")
    labels = TaskDefs(TASK_DEF).get_task_def("sentiment").label_vocab
    assert [labels[label] for _, label, _ in read(tmp_path, "movies_test")] == [0, 1] * 5


def test_an_archive_with_another_hash_is_refused(tmp_path: Path):
    archive = write_archive(tmp_path, EMPTY)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(DataError) as caught:
        hutto.download(tmp_path)
    assert str(caught.value).startswith(f"{archive}: sha256 is {found}, expected {hutto.SHA256}")
    assert "\n" not in str(caught.value)
    assert hutto.download(tmp_path, sha256=found) == archive


def test_pip_is_asked_for_the_hash_and_what_it_fetched_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = packed({"empty": b""})
    sha256 = hashlib.sha256(content).hexdigest()
    asked = []

    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        asked.append(Path(command[command.index("-r") + 1]).read_text())
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        (Path(command[command.index("--dest") + 1]) / hutto.ARCHIVE).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    for _ in range(2):
        assert hutto.download(tmp_path / "downloads", sha256).read_bytes() == content
    assert asked == [f"vaderSentiment==3.3.2 --hash=sha256:{sha256}\n"]
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [hutto.ARCHIVE]


def test_no_index_in_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match="pip could not download vaderSentiment==3.3.2: ERROR: No matching") as caught:
        hutto.download(tmp_path / "downloads")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_bytes_that_are_no_text_are_told_with_their_line():
    with pytest.raises(DataError, match=r"tweets_GroundTruth.txt, line 2: found the byte 0xff"):
        hutto.parse_ratings(b"1\t1\ta\n2\t1\t\xff\n", "tweets")


@pytest.mark.parametrize("kept", [10, 60])
def test_a_cut_archive_is_told(tmp_path: Path, kept: int):
    path = write_archive(tmp_path, {domain: rated_lines(domain, 5) for domain in hutto.DOMAINS})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=f"{path.name}: not a readable archive"):
        hutto.read_domains(path)


def test_a_line_break_in_an_id_is_none_of_the_file(tmp_path: Path):
    hutto.write_canonical(tmp_path / "a.tsv", [hutto.Example("x\ty\nz", "positive", "a\rb\0")])
    assert (tmp_path / "a.tsv").read_bytes() == b"x y z\tpositive\ta b \n"


@pytest.mark.parametrize(
    "content",
    [b"no archive", packed({"other": b""}), packed({hutto.INNER_ARCHIVE: b"broken"})],
    ids=["no archive", "another archive", "broken inner archive"],
)
def test_a_damaged_or_foreign_archive_is_told(tmp_path: Path, content: bytes):
    path = tmp_path / hutto.ARCHIVE
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(path)):
        hutto.read_domains(path)
