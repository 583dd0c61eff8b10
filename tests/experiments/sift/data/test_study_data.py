from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from data_utils.errors import DataError, FlagError
from data_utils.readers import read_canonical_tsv
from data_utils.task_def import DataFormat
from experiments.preparation import command as preparation
from experiments.sift.data import hutto, study_data
from experiments.sift.data.glue_pairs import Pair
from experiments.sift.data.hutto import Example, normal_form
from experiments.sift.data.study_data import PREPARATIONS, prepare, shared_texts
from experiments.sift.running.runs import TASK_DEF
from tests.encoder_folder import write_encoder
from tests.experiments.sift.hutto_archive import rated_lines, write_archive
from tests.experiments.sift.study_files import (
    NEL,
    write,
    write_advglue,
    write_all,
    write_cola,
    write_glue,
    write_hate,
    write_uci,
)


def forms(examples: list[Example]) -> set[str]:
    return {normal_form(example.text) for example in examples}


@pytest.fixture
def domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive of the four domains, without a download."""
    sizes = {"tweets": 40, "amazon": 30, "movies": 100, "editorials": 20}
    archive = write_archive(tmp_path, {domain: rated_lines(domain, size) for domain, size in sizes.items()})
    monkeypatch.setattr(hutto, "download", lambda folder: archive)


def test_cola_is_held_out_in_domain_and_tested_in_and_out_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_cola(tmp_path)
    datasets = study_data.cola(tmp_path)
    assert {name: len(part) for name, part in datasets.items()} == {
        "cola_train": 88, "cola_dev": 10, "cola_all_test": 20, "cola_in_test": 10, "cola_out_test": 10,
    }  # fmt: skip
    assert datasets["cola_all_test"] == [*datasets["cola_in_test"], *datasets["cola_out_test"]]
    assert capsys.readouterr().out.startswith("cola: 2 sentences of the training set are in a test set")
    assert datasets["cola_in_test"][0] == Example("in_domain_dev-1", "0", "he  sleeps 0.")
    # the last in the order of the hash, whatever the order of the file
    path = tmp_path / "cola" / "in_domain_train.tsv"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert forms(study_data.cola(tmp_path)["cola_dev"]) == forms(datasets["cola_dev"])


def test_a_sentence_that_occurs_several_times_is_not_held_out_and_trained_on(tmp_path: Path):
    write_cola(tmp_path)
    lines = [f"x\t1\t\tWord {number // 5}.\n" for number in range(85)]  # the cut, at 76, is inside a group of five
    write(tmp_path / "cola" / "in_domain_train.tsv", "".join(lines).encode())
    datasets = study_data.cola(tmp_path)
    assert (len(datasets["cola_train"]), len(datasets["cola_dev"])) == (76, 5)
    assert not forms(datasets["cola_train"]) & forms(datasets["cola_dev"])


def test_tweets_are_cleaned_and_duplicates_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_hate(tmp_path)
    datasets = study_data.hate(tmp_path)
    assert capsys.readouterr().out == (
        "hate: 406 tweets, 3 of them duplicates; of the 403 texts 1 with both labels are left out\n"
    )
    by_uid = {example.uid: example for part in datasets.values() for example in part}
    assert by_uid["hate-10"] == Example("hate-10", "negative", "tweet, no. 10 ð??")
    assert by_uid["hate-401"] == Example("hate-401", "negative", "two lines of it")
    assert all("both" not in forms(part) for part in datasets.values())


def test_balanced_tweets_are_cut_from_the_same_parts(tmp_path: Path):
    write_hate(tmp_path)
    datasets = study_data.hate(tmp_path)
    for split in ("train", "dev", "test"):
        counts = Counter(example.label for example in datasets[f"sentiment_hatebalanced_{split}"])
        assert counts["negative"] == counts["positive"] > 0
    # every hateful tweet is in a balanced part
    assert sum(len(datasets[f"sentiment_hatebalanced_{split}"]) for split in ("train", "dev", "test")) == 2 * 41
    assert len(datasets["sentiment_hate_train"]) == len(datasets["sentiment_hatebalanced_train"])
    assert [len(datasets[f"sentiment_hate_{split}"]) for split in ("dev", "test")] == [40, 81]
    for split in ("dev", "test"):
        assert set(datasets[f"sentiment_hatebalanced_{split}"]) <= set(datasets[f"sentiment_hate_{split}"])
    counts = Counter(example.label for example in datasets["sentiment_hate_train"])
    assert counts["negative"] < counts["positive"]


def test_small_shares_of_the_reviews_are_trained_on_and_the_rest_tested(tmp_path: Path):
    write_uci(tmp_path)
    datasets = study_data.uci(tmp_path)
    ten, one = datasets["sentiment_uci10_train"], datasets["sentiment_uci1_train"]
    assert (len(ten), len(one)) == (300, 30) and set(one) < set(ten)
    assert {example.uid.split("_")[0] for example in one} == {"amazon", "imdb", "yelp"}
    tests = [datasets[f"sentiment_uci{site}_test"] for site in ("amazon", "imdb", "yelp")]
    assert 100 < sum(map(len, tests)) < 150  # some that all three sites have are trained on from another site
    for part in tests:
        assert not forms(part) & forms(ten)
    texts = [example.text for part in [ten, *tests] for example in part]
    assert any(NEL in text for text in texts) and all(text == text.strip() for text in texts)


def test_unaligned_labels_are_the_same_sentences_with_the_labels_exchanged(tmp_path: Path):
    write_uci(tmp_path)
    datasets = study_data.uci(tmp_path)
    assert len(datasets) == 10
    for name in ("uci1_train", "uci10_train", "uciamazon_test", "uciimdb_test", "uciyelp_test"):
        dataset, split = name.split("_")
        pairs = zip(datasets[f"sentiment_{name}"], datasets[f"sentiment_{dataset}flipped_{split}"], strict=True)
        for example, other in pairs:
            assert {example.label, other.label} == {"negative", "positive"}
            assert (example.uid, example.text) == (other.uid, other.text)


def test_every_domain_is_trained_on_and_tested_whole(tmp_path: Path, domains: None):
    sizes = {name: len(part) for name, part in study_data.sentiment(tmp_path).items()}
    assert sizes == {
        "sentiment_tweets_train": 28, "sentiment_tweets_dev": 4, "sentiment_tweets_test": 8,
        "sentiment_amazon_test": 30, "sentiment_movies_test": 100, "sentiment_editorials_test": 20,
        "sentiment_fromamazon_train": 21, "sentiment_fromamazon_dev": 3, "sentiment_fromamazon_test": 6,
        "sentiment_frommovies_train": 28, "sentiment_frommovies_dev": 10, "sentiment_frommovies_test": 20,
        "sentiment_fromeditorials_train": 14, "sentiment_fromeditorials_dev": 2, "sentiment_fromeditorials_test": 4,
    }  # fmt: skip


def test_pairs_are_held_out_and_tested_on_glues_development_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_glue(tmp_path)
    for task in ("rte", "stsb"):
        datasets = PREPARATIONS[task](tmp_path)
        assert {name: len(part) for name, part in datasets.items()} == {
            f"{task}_train": 36, f"{task}_dev": 4, f"{task}_test": 9,
        }  # fmt: skip
        assert capsys.readouterr().out == (f"{task}: 1 pairs of the training set are in the test set and left out\n")
        assert not shared_texts(datasets)
    assert datasets["stsb_test"][0] == Pair("dev-0", "0.250", "A hen.", "The one.")


def test_advglue_is_its_sentiment_part_or_its_entailment(tmp_path: Path):
    write_advglue(tmp_path)
    (pairs,) = study_data.advglue_rte(tmp_path).values()
    assert len(pairs) == 4 and pairs[1] == Pair("advglue-1", "not_entailment", "a film 1 .", "it is .")
    (examples,) = study_data.advglue(tmp_path).values()
    assert len(examples) == 6
    assert examples[1] == Example("advglue-1", "positive", "a film 1 .")


def test_no_text_of_a_test_is_trained_on(tmp_path: Path, domains: None):
    write_all(tmp_path)
    datasets = {name: part for prepared in PREPARATIONS.values() for name, part in prepared(tmp_path).items()}
    other_domains = [domain for domain in hutto.DOMAINS if domain != "tweets"]
    assert set(shared_texts(datasets)) == {
        (f"sentiment_from{domain}_{split}", f"sentiment_{domain}_test")
        for domain in other_domains
        for split in ("train", "dev")
    }


def test_shared_texts_are_counted_whatever_their_case_and_white_space():
    trained = [Example("1", "0", "A  cat"), Example("2", "0", "A dog")]
    datasets = {"x_train": trained, "x_test": [Example("3", "1", "a CAT ")], "y_test": [Example("4", "1", "cow")]}
    assert shared_texts(datasets) == {("x_train", "x_test"): 1}


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("cola", "cola/in_domain_dev.tsv", "nyu-mll.github.io/CoLA"),
        ("rte", "glue/RTE/dev.tsv", "gluebenchmark.com"),
        ("stsb", "glue/STS-B/train.tsv", "gluebenchmark.com"),
        ("hate", "twitter_hate/train.csv", "kaggle"),
        ("uci", "uci_sentiment/imdb_labelled.txt", "archive.ics.uci.edu"),
        ("advglue", "advglue/dev.json", "adversarialglue"),
    ],
)
def test_a_missing_file_is_told_with_its_source(tmp_path: Path, name: str, file: str, words: str):
    write_all(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=words) as caught:
        PREPARATIONS[name](tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / file}: not found") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("cola", "cola/out_of_domain_dev.tsv", "x\t1\t\tA\nx\t2\t\tB\n", "line 2: found label '2', accepted: 0, 1"),
        ("hate", "twitter_hate/train.csv", "id,tweet\n1,a\n", "line 1: expected the header id,label,tweet"),
        ("hate", "twitter_hate/train.csv", "id,label,tweet\n1,0,a\n2,0\n", "line 3: expected 3 columns"),
        ("uci", "uci_sentiment/yelp_labelled.txt", "good\t1\nbad 0\n", "line 2: expected 2 tab-separated columns"),
        ("advglue", "advglue/dev.json", '{"rte": []}', "expected JSON, a list `sst2`"),
        (
            "advglue_rte",
            "advglue/dev.json",
            '{"rte": [{"idx": 1}]}',
            "a list `rte` of objects with idx, sentence1, sen",
        ),
        ("rte", "glue/RTE/train.tsv", "index\tlabel\n0\t1\n", "expected a header with sentence1, sentence2, found"),
    ],
)
def test_a_malformed_file_is_told(tmp_path: Path, name: str, file: str, content: str, message: str):
    write_all(tmp_path)
    write(tmp_path / file, content.encode())
    with pytest.raises(DataError, match=message) as caught:
        PREPARATIONS[name](tmp_path)
    assert str(caught.value).startswith(str(tmp_path / file))


def test_an_unknown_name_is_told(tmp_path: Path):
    with pytest.raises(FlagError, match=r"found 'hat' \(did you mean 'hate'\?\), accepted: cola, rte, stsb, hate"):
        prepare(["hat"], tmp_path, tmp_path, "tiny", TASK_DEF)


def test_token_files_are_made_once_and_again_where_a_source_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    tokenize = preparation.main

    def counted(argv: list[str]) -> None:
        calls.append(argv)
        tokenize(argv)

    monkeypatch.setattr(preparation, "main", counted)
    write_uci(tmp_path / "data")
    write_advglue(tmp_path / "data")

    encoder = write_encoder(tmp_path / "tiny")

    def prepared(*names: str) -> Path:
        return prepare(names, tmp_path / "data", tmp_path / "canonical", str(encoder), TASK_DEF)

    folder = prepared("uci", "advglue")
    assert folder == tmp_path / "canonical" / "tiny"
    rows = list(read_canonical_tsv(tmp_path / "canonical" / "sentiment_advglue_test.tsv", DataFormat.PremiseOnly))
    tokens = [json.loads(line) for line in (folder / "sentiment_advglue_test.json").read_text().splitlines()]
    assert [row["uid"] for row in rows] == [line["uid"] for line in tokens]
    assert [line["label"] for line in tokens] == [0, 1] * 3

    assert prepared("advglue") == prepared("uci") == folder and len(calls) == 1
    (folder / "sentiment_uci1_train.json").unlink()
    prepared("uci")
    assert len(calls) == 2 and (folder / "sentiment_uci1_train.json").is_file()
    write(tmp_path / "data" / "advglue" / "dev.json", b'{"sst2": [{"idx": 9, "sentence": "new", "label": 1}]}')
    prepared("uci", "advglue")
    assert len(calls) == 3 and len((folder / "sentiment_advglue_test.json").read_text().splitlines()) == 1
    (folder / study_data.STAMP).write_text('["cut')
    prepared("uci", "advglue")
    assert len(calls) == 4


def test_the_command_lists_sizes_shares_and_shared_texts(
    tmp_path: Path, domains: None, capsys: pytest.CaptureFixture[str]
):
    write_advglue(tmp_path)
    study_data.main(["advglue", "sentiment", "--data_root", str(tmp_path), "--root_dir", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'out' / 'sentiment_advglue_test.tsv'}: 6 examples, 50.0% negative"
    assert (
        "sentiment_fromamazon_dev shares 3 texts with sentiment_amazon_test: no test for a model trained on it" in lines
    )
    assert len(list((tmp_path / "out").glob("*.tsv"))) == 16
