import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_utils import readers
from data_utils.errors import DataError
from data_utils.readers import read_canonical_tsv, read_score_file, read_scores, read_token_json, write_score_file
from data_utils.storage.text_files import write_lines
from data_utils.task_def import DataFormat

FIXTURES = Path(__file__).parents[1] / "fixtures"


def write(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


def test_columns_by_format(tmp_path: Path):
    path = write(tmp_path, b"0\t1\ta b\n1\t0\tc\n")
    assert list(read_canonical_tsv(path, DataFormat.PremiseOnly)) == [
        {"uid": "0", "label": "1", "premise": "a b"},
        {"uid": "1", "label": "0", "premise": "c"},
    ]
    path = write(tmp_path, b"0\tx\ta\tb")
    pairs = list(read_canonical_tsv(path, DataFormat.PremiseAndOneHypothesis))
    assert pairs == [{"uid": "0", "label": "x", "premise": "a", "hypothesis": "b"}]


def test_only_line_feeds_end_a_line(tmp_path: Path):
    text = "a\x85b\x0bc\u2028d\x1ce\rf"
    path = write(tmp_path, f"\ufeff0\t1\t{text}\r\n1\t0\tg\n".encode())
    examples = list(read_canonical_tsv(path, DataFormat.PremiseOnly))
    assert [example["uid"] for example in examples] == ["0", "1"]
    assert examples[0]["premise"] == text


def test_quotes_are_text(tmp_path: Path):
    path = write(tmp_path, b'0\t1\t"a\n1\t1\tb"\n')
    assert [example["premise"] for example in read_canonical_tsv(path, DataFormat.PremiseOnly)] == ['"a', 'b"']


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"0\t1\ta\n1\t1\n", 2, r"expected 3 .*found 2"),
        (b"0\t1\ta\tb\n", 1, r"expected 3 .*found 4"),
        (b"0\t1\ta\n\n", 2, r"expected 3 .*found 1"),
        (b"0\t1\ta\n1\t1\t\xff\n", 2, r"0xff at byte 5"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, content: bytes, line: int, words: str):
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=words) as caught:
        list(read_canonical_tsv(path, DataFormat.PremiseOnly))
    assert str(caught.value).startswith(f"{path}, line {line}: ")


def test_a_missing_file_and_a_format_not_built_are_reported(tmp_path: Path):
    with pytest.raises(DataError, match="nothing.tsv: cannot be read"):
        list(read_canonical_tsv(tmp_path / "nothing.tsv", DataFormat.PremiseOnly))
    with pytest.raises(DataError, match="CLUE_SEQ is a name without a reader"):
        list(read_canonical_tsv(tmp_path / "nothing.tsv", DataFormat.CLUE_SEQ))


def test_token_json_comes_with_line_numbers(tmp_path: Path):
    examples = [{"uid": "é", "token_id": [1, 2], "type_id": [0, 1]}, {"uid": "1", "token_id": [3]}]
    assert write_lines(tmp_path / "file", map(json.dumps, examples)) == 2
    assert list(read_token_json(tmp_path / "file")) == [(1, examples[0]), (2, examples[1])]


@pytest.mark.parametrize(
    "second",
    [
        '{"uid": "1", "token_id": [1, 2',
        "[1, 2]",
        '{"uid": "1"}',
        '{"uid": "1", "token_id": []}',
        '{"uid": "1", "token_id": [1, true]}',
        '{"uid": "1", "token_id": [1, 2.0]}',
        '{"uid": "1", "token_id": "12"}',
        '{"uid": "1", "token_id": [1, 2], "type_id": [0]}',
        '{"uid": "1", "token_id": [1, 2], "attention_mask": [1, "1"]}',
        "",
    ],
)
def test_a_damaged_token_line_is_named(tmp_path: Path, second: str):
    path = write(tmp_path, ('{"uid": "0", "token_id": [1]}\n' + second + "\n").encode())
    with pytest.raises(DataError) as caught:
        list(read_token_json(path))
    assert str(caught.value).startswith(f"{path}, line 2: ")


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = write(tmp_path, b"old\n")

    def failing():
        yield "0"
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        write_lines(path, failing())
    assert path.read_text() == "old\n" and list(tmp_path.iterdir()) == [path]


def test_scores_of_tokens_are_flattened_and_predictions_stay_with_their_example(tmp_path: Path):
    path = tmp_path / "scores.json"
    scores = [np.array([[0.25, 0.75], [1, 0]]), np.array([[0.5, 0.5]])]
    write_score_file(path, {"ACC": 50.0}, [np.array([1, 0]), np.array([0])], ["a", "b"], scores)
    found = read_score_file(path)
    assert found["predictions"] == [[1, 0], [0]] and found["scores"] == [0.25, 0.75, 1.0, 0.0, 0.5, 0.5]


def test_score_file_has_the_bytes_of_mt_dnn(tmp_path: Path):
    golden = FIXTURES / "mtdnn_run" / "cola_dev_scores_epoch_0.json"
    content = read_score_file(golden)
    scores = np.array(content["scores"]).reshape(len(content["uids"]), -1)
    assert scores.shape[1] == 2
    write_score_file(tmp_path / "file", content["metrics"], content["predictions"], content["uids"], scores)
    assert (tmp_path / "file").read_bytes() == golden.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        json.dumps({"metrics": {}, "predictions": [0], "uids": ["0"]}),
        json.dumps({"metrics": {}, "predictions": [0], "uids": ["0", "1"], "scores": [0.0, 1.0]}),
        json.dumps({"metrics": {}, "predictions": [0, 1], "uids": ["0", "1"], "scores": [0.0, 1.0, 2.0]}),
    ],
)
def test_what_is_no_score_file_is_refused(tmp_path: Path, content: str):
    path = write(tmp_path, content.encode())
    with pytest.raises(DataError, match=str(path)):
        read_score_file(path)


def test_documents_are_split_by_empty_lines_and_long_ones_into_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 3)
    path = tmp_path / "mlm_train.txt"
    path.write_text("\n a \nb\n \t\n\nc\nd\ne\nf\n\ng\nh\ni\n\nj")
    expected = [["a", "b"], ["c", "d", "e"], ["f"], ["g", "h", "i"], ["j"]]
    documents = list(read_canonical_tsv(path, DataFormat.MLM))
    assert documents == [{"uid": str(number), "sentences": own} for number, own in enumerate(expected)]


SCORES = {"metrics": {}, "predictions": [0, 1], "uids": ["0", "1"], "scores": [0.1, 0.9, 1.0, 0.0]}


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("metrics", []), ("uids", 5), ("uids", [["0"], "1"]), ("predictions", {"0": 1, "1": 0}),
        ("predictions", [0, None]),
        ("scores", None), ("scores", [0.1, 0.9, "1", 0]), ("scores", [float("nan")] * 4), ("scores", [10**400] * 4),
    ],
)  # fmt: skip
def test_a_score_file_with_a_wrong_part_is_reported(tmp_path: Path, key: str, wrong: object):
    path = write(tmp_path, json.dumps(SCORES | {key: wrong}).encode())
    with pytest.raises(DataError, match=f"file: {key} must be"):
        read_score_file(path)


def test_a_prediction_that_its_task_refuses_is_reported_with_the_file(tmp_path: Path):
    path = write(tmp_path, json.dumps(SCORES).encode())

    def refuse(predictions: list[object]) -> list[tuple[int, ...]]:
        raise ValueError(f"found {predictions}")

    with pytest.raises(DataError, match=r"file: found \[.*\]$"):
        read_scores(path, ["0", "1"], refuse)


NUMBERS = st.one_of(st.integers(-3, 70000), st.sampled_from([2**31, 2**64, 10**30, True, False, 1.0, 1e300, None, "1"]))
LISTS = st.one_of(st.lists(NUMBERS, max_size=4), st.lists(st.integers(0, 9), min_size=3, max_size=3))
VALUES = st.one_of(LISTS, NUMBERS, st.text(max_size=4), st.just({}), st.just([[1], {"a": 2}]))
KEYS = st.sampled_from(["token_id", "type_id", "attention_mask", "mask", "uid", "label", "a:b"])
OTHER_LINES = st.one_of(st.text(max_size=6).map(str.encode), st.binary(max_size=6))


@given(
    content=st.one_of(st.lists(st.tuples(KEYS, VALUES), max_size=6), OTHER_LINES),
    signs=st.sampled_from([(", ", ": "), (",", " :"), ("\t,", ":\r")]),
    ascii_only=st.booleans(),
)
@example(content=[("uid", "x"), ("token_id", [5, 6, 7]), ("token_id", [1])], signs=(", ", ": "), ascii_only=True)
@example(content=[("uid", 10**20), ("token_id", [5, 6])], signs=(", ", ": "), ascii_only=True)
@example(content=[("uid", "\ud800"), ("token_id", [5, 6])], signs=(", ", ": "), ascii_only=True)
@example(content=[("uid", "1"), ("token_id", [True, 1])], signs=(", ", ": "), ascii_only=True)
@example(content=[("uid", "1"), ("token_id", [5, 6]), ("label", [[[[[[[[]]]]]]]])], signs=(", ", ": "), ascii_only=True)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_fast_parser_reads_and_refuses_what_the_careful_one_does(
    content: list[tuple[str, Any]] | bytes, signs: tuple[str, str], ascii_only: bool, tmp_path: Path
) -> None:
    if isinstance(content, bytes):
        line = content
    else:
        pairs = (json.dumps(key) + signs[1] + json.dumps(value, ensure_ascii=ascii_only) for key, value in content)
        line = ("{" + signs[0].join(pairs) + "}").encode("utf-8", "surrogatepass")
    path = write(tmp_path, line)

    def outcome() -> Any:
        try:
            return [(number, sample, repr(sample)) for number, sample in read_token_json(path)]
        except DataError as error:
            return str(error)

    fast = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "plain_object", lambda line: None)
        careful = outcome()
    if isinstance(fast, list) and isinstance(careful, list) and fast != careful:
        # The one difference: an integer beyond 64 bits is a float, which only a label can be.
        assert [sample for _, sample, _ in fast] == [sample for _, sample, _ in careful]
        assert all(abs(sample["label"]) >= 2**63 for _, sample, _ in careful)
        return
    assert fast == careful


def test_ordinary_lines_take_the_fast_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = {"uid": "17", "label": 2, "token_id": [101, 7, 102], "type_id": [0, 0, 0], "attention_mask": [1, 1, 1]}
    monkeypatch.setattr(readers, "parse_json_object", None)
    assert list(read_token_json(write(tmp_path, json.dumps(sample).encode()))) == [(1, sample)]
