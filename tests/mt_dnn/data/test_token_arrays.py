"""The cache of a token file: taken where it holds this very file, made anew where not, never needed."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_utils.errors import DataError
from data_utils.storage.array_file import write_arrays
from mt_dnn.batcher import SingleTaskDataset
from mt_dnn.data import token_arrays
from mt_dnn.data.token_arrays import ARRAYS, TokenArrays, open_token_arrays, read_token_arrays
from tasks import Task, get_task
from tasks.definition import TaskDefs
from tests.mt_dnn.conftest import TASKS, example

LINES = [example(uid, label=uid % 3, length=3 + uid) for uid in range(20)]
LONG_AGO = 1_700_000_000_000_000_000  # ns


@pytest.fixture
def task_defs(tmp_path: Path) -> TaskDefs:
    (tmp_path / "tasks.yml").write_text(TASKS)
    return TaskDefs(tmp_path / "tasks.yml")


@pytest.fixture
def mnli(task_defs: TaskDefs) -> Task:
    return get_task(task_defs.get_task_def("mnli"))


def write(folder: Path, lines: Sequence[dict[str, Any]] = LINES, changed: int = LONG_AGO) -> Path:
    path = folder / "mnli_train.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(path, ns=(changed, changed))
    return path


def cache_of(path: Path) -> Path:
    return path.parent / ".mnli_train.cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The token files that were read from JSON."""
    calls: list[Path] = []
    read: Callable[..., TokenArrays] = read_token_arrays

    def counted(path: Path, *rest: Any) -> TokenArrays:
        calls.append(path)
        return read(path, *rest)

    monkeypatch.setattr(token_arrays, "read_token_arrays", counted)
    return calls


def assert_same(first: TokenArrays, second: TokenArrays) -> None:
    for name in ARRAYS:
        one, other = getattr(first, name), getattr(second, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_the_cache_holds_what_the_file_holds(tmp_path: Path, mnli: Task, reads: list[Path]) -> None:
    path = write(tmp_path)
    first, second = (open_token_arrays(path, mnli, needs_labels=True) for _ in range(2))
    assert reads == [path]
    assert first.cache is not None and second.cache is not None
    assert_same(first, read_token_arrays(path, mnli))
    assert_same(first, second)
    assert [second.uid(index) for index in range(20)] == [line["uid"] for line in LINES]
    assert second.largest_token[0] == max(token for line in LINES for token in line["token_id"])


@pytest.mark.parametrize("uid", ["é€😀", "\x00\x85\u2028", "", 12, None])
def test_ids_of_any_kind_come_back_as_text(tmp_path: Path, mnli: Task, uid: object) -> None:
    path = write(tmp_path, [example(0), {**example(1), "uid": uid}, example(2)])
    for _ in range(2):
        data = SingleTaskDataset(path, True, 0, mnli.task_def)
        assert list(data.uids) == ["0", str(uid), "2"] == [data[index]["uid"] for index in range(3)]
    assert cache_of(path).is_file()


def test_a_teachers_scores_are_kept_where_examples_have_as_many_as_tokens_ask_for(
    tmp_path: Path, reads: list[Path]
) -> None:
    (tmp_path / "own.yml").write_text(
        "mnli: {data_format: Seqence, task_type: SeqenceLabeling, n_class: 2, metric_meta: [ACC]}\n"
    )
    task = get_task(TaskDefs(tmp_path / "own.yml").get_task_def("mnli"))
    lines = [
        {"uid": str(length), "token_id": [2] * length, "label": [1] * length, "softlabel": [0.5] * 2 * length}
        for length in (2, 3, 5)
    ]
    path = write(tmp_path, lines)
    first, second = (open_token_arrays(path, task, needs_labels=True) for _ in range(2))
    assert reads == [path]
    assert_same(first, second)
    assert [len(own) for own in map(second.soft_label, range(3)) if own is not None] == [4, 6, 10]


def test_one_cache_serves_every_length_training_and_evaluation(tmp_path: Path, mnli: Task, reads: list[Path]) -> None:
    path = write(tmp_path)
    for longest, is_train, expected in ((512, True, 20), (10, True, 8), (10, False, 20), (12, True, 10)):
        data = SingleTaskDataset(path, is_train, 0, mnli.task_def, longest)
        assert list(data.uids) == [str(uid) for uid in range(expected)]
        assert data.labels is not None and data.labels.tolist() == [uid % 3 for uid in range(expected)]
        assert data[expected - 1]["token_id"].tolist() == LINES[expected - 1]["token_id"]
    assert reads == [path]
    with pytest.raises(DataError, match="all 20 examples are longer than 2 tokens"):
        SingleTaskDataset(path, True, 0, mnli.task_def, 2)


def test_a_changed_file_is_read_anew(tmp_path: Path, mnli: Task, reads: list[Path]) -> None:
    open_token_arrays(write(tmp_path), mnli)
    other = [{**line, "label": 2} for line in LINES]  # as many bytes
    path = write(tmp_path, other, LONG_AGO + 1)
    assert open_token_arrays(path, mnli).labels.tolist() == [2] * 20
    assert open_token_arrays(write(tmp_path, other[:3]), mnli).labels.tolist() == [2] * 3
    assert len(reads) == 3


def test_a_file_just_written_is_not_kept_for_it_may_change_within_its_time_stamp(tmp_path: Path, mnli: Task) -> None:
    path = write(tmp_path)
    os.utime(path)
    assert open_token_arrays(path, mnli).cache is None
    assert not cache_of(path).exists()


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, mnli: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)

    def changes(*arguments: Any) -> TokenArrays:
        found = read_token_arrays(*arguments)
        write(tmp_path, LINES, LONG_AGO + 5)
        return found

    monkeypatch.setattr(token_arrays, "read_token_arrays", changes)
    assert len(open_token_arrays(path, mnli)) == 20
    assert not cache_of(path).exists()


def test_another_kind_of_task_is_another_check(tmp_path: Path, task_defs: TaskDefs, reads: list[Path]) -> None:
    path = write(tmp_path)
    mnli, stsb = (get_task(task_defs.get_task_def(name)) for name in ("mnli", "stsb"))
    assert open_token_arrays(path, mnli).labels.dtype == np.int64
    assert open_token_arrays(path, stsb).labels.dtype == np.float32
    assert not len(open_token_arrays(path, mnli, labeled=False).labels)
    assert len(open_token_arrays(path, mnli).labels) == 20
    assert len(reads) == 4


def test_a_training_set_needs_labels_from_the_cache_too(tmp_path: Path, mnli: Task, reads: list[Path]) -> None:
    path = write(tmp_path, [{**line, "label": None} for line in LINES])
    assert SingleTaskDataset(path, False, 0, mnli.task_def).labels is None
    with pytest.raises(DataError, match="mnli_train.json, line 1: found no label; a training example needs one"):
        SingleTaskDataset(path, True, 0, mnli.task_def)
    assert len(reads) == 1


def test_a_damaged_cache_is_made_anew(tmp_path: Path, mnli: Task, reads: list[Path]) -> None:
    path = write(tmp_path)
    open_token_arrays(path, mnli)
    expected = read_token_arrays(path, mnli)  # not mapped: a map of a file cut short cannot be read
    whole = cache_of(path).read_bytes()
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], whole[:-9] + b"x" + whole[-8:], b"\x80\n" + whole):
        cache_of(path).write_bytes(damaged)
        assert_same(open_token_arrays(path, mnli), expected)
        assert cache_of(path).read_bytes() == whole
    assert len(reads) == 6


def test_a_folder_that_cannot_be_written_is_read_every_time(tmp_path: Path, mnli: Task, reads: list[Path]) -> None:
    path = write(tmp_path)
    (cache_of(path) / "in the way").mkdir(parents=True)
    for _ in range(2):
        data = SingleTaskDataset(path, True, 0, mnli.task_def)
        assert len(data) == 20 and data[3]["token_id"].tolist() == LINES[3]["token_id"]
    assert len(reads) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == [".mnli_train.cache", "mnli_train.json", "tasks.yml"]


def test_a_line_that_cannot_be_used_leaves_no_cache(tmp_path: Path, mnli: Task) -> None:
    path = write(tmp_path, [*LINES, {**example(99), "label": 7}])
    with pytest.raises(DataError, match="line 21: label is 7"):
        open_token_arrays(path, mnli)
    assert not cache_of(path).exists()
    with pytest.raises(DataError, match="nothing.json: cannot be read"):
        open_token_arrays(tmp_path / "nothing.json", mnli)


def _sum(data: SingleTaskDataset) -> tuple[int, list[str], int]:
    return sum(int(data[index]["token_id"].sum()) for index in range(len(data))), list(data.uids), len(data)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_another_process_gets_the_file_not_its_values(tmp_path: Path, mnli: Task, method: str) -> None:
    lines = [example(uid, label=0, length=400) for uid in range(500)]
    data = SingleTaskDataset(write(tmp_path, lines), True, 0, mnli.task_def)
    assert len(pickle.dumps(data)) < 3000 < data._arrays.tokens.nbytes
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert pool.submit(_sum, data).result() == _sum(data)
    cache_of(data.path).unlink()
    with pytest.raises(DataError, match="was removed or replaced"):
        pickle.loads(pickle.dumps(data))
    os.utime(data.path)
    in_memory = SingleTaskDataset(data.path, True, 0, mnli.task_def, 512)
    assert _sum(pickle.loads(pickle.dumps(in_memory))) == _sum(data)


def test_two_processes_may_make_it_at_once(tmp_path: Path, mnli: Task) -> None:
    path = write(tmp_path, [example(uid, length=30) for uid in range(2000)])
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        found = list(
            pool.map(_sum, [*pool.map(SingleTaskDataset, [path] * 2, [True] * 2, [0] * 2, [mnli.task_def] * 2)])
        )
    assert found[0] == found[1]
    assert open_token_arrays(path, mnli).cache is not None
    assert sorted(file.name for file in tmp_path.iterdir()) == [".mnli_train.cache", "mnli_train.json", "tasks.yml"]


@pytest.mark.parametrize(
    ("key", "wrong", "words"),
    [
        ("uid", ["0"], "found no uid"),
        ("uid", {}, "found no uid"),
        ("softlabel", [10**400, 0, 0], "softlabel must be a list of 3 finite numbers"),
        ("softlabel", [1e300, 0, 0], "softlabel must be a list of 3 finite numbers"),
    ],
)
def test_numbers_out_of_range_and_ids_that_are_none_are_named(
    tmp_path: Path, mnli: Task, key: str, wrong: object, words: str
) -> None:
    path = write(tmp_path, [example(0), {**example(1), key: wrong}])
    with pytest.raises(DataError, match=f"line 2: {words}"):
        read_token_arrays(path, mnli)


@pytest.mark.parametrize("name", ["offsets", "rows", "uid_offsets", "labels", "largest_token", "types"])
def test_a_cache_with_a_right_checksum_and_wrong_arrays_is_made_anew(
    tmp_path: Path, mnli: Task, reads: list[Path], name: str
) -> None:
    path = write(tmp_path)
    found = open_token_arrays(path, mnli)
    assert found.cache is not None
    arrays = {own: np.array(getattr(found, own)) for own in ARRAYS}
    for wrong in (arrays[name] + np.ones(1, arrays[name].dtype), arrays[name][:-1], arrays[name].astype(np.float64)):
        if name in ("labels", "types") and len(wrong) == len(arrays[name]) and wrong.dtype == arrays[name].dtype:
            continue  # other values of the same form cannot be told from the file's
        write_arrays(cache_of(path), found.cache[1], arrays | {name: wrong})
        reads.clear()
        assert_same(open_token_arrays(path, mnli), read_token_arrays(path, mnli))
        assert reads == [path]
