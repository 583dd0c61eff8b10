"""From a checkpoint and files to what a run's file holds; mistakes are one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

import prepro_std
from data_utils.errors import UserError
from experiments.sift.attacks.robustness import evenly_spread, measure_robustness, parse_spec
from mt_dnn.batcher import Collater, SingleTaskDataset
from mt_dnn.configuration.config import Config
from mt_dnn.model import MTDNNModel
from tasks.definition import TaskDefs

TASKS = """
sentiment: {data_format: PremiseOnly, task_type: Classification, n_class: 2, labels: [negative, positive],
            metric_meta: [ACC], loss: CeCriterion}
pairs: {data_format: PremiseAndOneHypothesis, task_type: Classification, n_class: 2, metric_meta: [ACC],
        loss: CeCriterion}
similarity: {data_format: PremiseOnly, task_type: Regression, n_class: 1, metric_meta: [Pearson], loss: MseCriterion}
"""
WORDS = ["good", "fine", "lovely", "great", "poor", "awful", "boring", "dreadful"]
PGD = {"radii": [0.5, 2.0], "examples": 10, "steps": 2}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder, the task's texts and tokens, and a checkpoint that knows good words from bad."""
    folder = tmp_path_factory.mktemp("robustness")
    (folder / "tasks.yml").write_text(TASKS)
    encoder = folder / "tiny"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(vocabulary)}, "[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(encoder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=12, max_position_embeddings=16, **sizes)).save_pretrained(
        encoder
    )
    generator = np.random.default_rng(0)
    for name in ("sentiment_one_test", "sentiment_two_test"):
        lines = []
        for number in range(25):
            positive = int(generator.integers(2))
            word = generator.choice(WORDS[:4] if positive else WORDS[4:])
            text = " ".join(["it was", word, *["indeed"] * (number % 4)])
            lines.append(f"{name} {number}\t{['negative', 'positive'][positive]}\t{text}\n")
        (folder / f"{name}.tsv").write_text("".join(lines))
    prepro_std.main(["--model", str(encoder), "--root_dir", str(folder), "--task_def", str(folder / "tasks.yml")])
    save(folder, "sentiment", train=True)
    return folder


def files_of(study: Path) -> list[Path]:
    return [study / "tiny" / f"sentiment_{name}_test.json" for name in ("one", "two")]


def save(folder: Path, task: str, train: bool = False) -> Path:
    """A checkpoint of a task, trained where asked for."""
    task_def = TaskDefs(folder / "tasks.yml").get_task_def(task)
    flags: dict[str, Any] = {"init_checkpoint": str(folder / "tiny"), "optimizer": "adamw", "learning_rate": 0.03}
    torch.manual_seed(0)
    model = MTDNNModel(Config.from_flags(flags), [task_def], total_updates=40)
    if train:
        dataset = SingleTaskDataset(files_of(folder)[0], False, 0, task_def)
        batch = Collater(0)([dataset[index] for index in range(len(dataset))])
        for _ in range(40):
            model.update(batch)
    path = folder / f"{task}.pt"
    model.save(str(path))
    return path


@pytest.fixture
def measure(study: Path) -> Callable[..., dict[str, Any]]:
    def call(spec: Any, **options: Any) -> dict[str, Any]:
        given = {"checkpoint": study / "sentiment.pt", "tests": files_of(study), "encoder": str(study / "tiny")}
        return measure_robustness(spec=spec, **(given | options))

    return call


def test_all_of_it(measure: Callable[..., dict[str, Any]], study: Path):
    found = measure({"pgd": PGD, "characters": {"examples": 15, "queries": 40}, "tests": ["not", "read"]})
    assert json.loads(json.dumps(found)) == found
    assert list(found) == ["pgd", "characters"]
    names = ["sentiment_one_test", "sentiment_two_test"]
    assert list(found["pgd"]) == list(found["characters"]) == names
    for name in names:
        texts = [line.split("\t")[2] for line in (study / f"{name}.tsv").read_text().splitlines()]
        assert list(found["pgd"][name]) == ["pre_ln", "post_ln"]
        for level in found["pgd"][name].values():
            assert level["radii"] == [0.0, 0.5, 2.0]
            correct = np.array(level["correct"])
            assert correct.shape == (3, 10) and set(correct.flat) <= {0, 1}
            assert correct[0].all() and correct[2].sum() < correct[0].sum()
        characters = found["characters"][name]
        assert list(characters) == ["clean", "attacked", "queries", "examples"]
        assert all(len(characters[key]) == 15 for key in ("clean", "attacked", "queries"))
        assert sum(characters["clean"]) == 15 and sum(characters["attacked"]) < 15
        assert 1 < max(characters["queries"]) <= 40
        assert 0 < len(characters["examples"]) <= 5
        for before, after in characters["examples"]:
            assert before in [texts[index] for index in evenly_spread(25, 15)] and after != before


def test_the_same_again_and_only_what_is_asked_for(measure: Callable[..., dict[str, Any]]):
    assert measure({"pgd": PGD}) == measure({"pgd": PGD})
    characters = {"characters": {"examples": 3, "queries": 9}}
    first = measure(characters)
    assert first == measure(characters) and list(first) == ["characters"]
    assert measure({}) == {}


def test_examples_are_spread_over_the_file_by_its_length_alone():
    assert evenly_spread(10, 4).tolist() == [0, 2, 5, 7]
    assert evenly_spread(1000, 500).tolist() == list(range(0, 1000, 2))
    assert evenly_spread(3, 3).tolist() == evenly_spread(3, 9).tolist() == [0, 1, 2]
    assert len(set(evenly_spread(7, 5).tolist())) == 5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"pdg": {}}, "robustness: pdg: found an unknown key (did you mean 'pgd'?), accepted: tests, pgd, characters"),
        ({"pgd": {**PGD, "step": 3}}, "robustness: pgd: step: found an unknown key (did you mean 'steps'?)"),
        ({"pgd": {"radii": [0.1]}}, "robustness: pgd: examples: missing, accepted: a whole number from 1"),
        ({"pgd": {**PGD, "radii": [0.1, 0.1]}}, "found [0.1, 0.1], accepted: a list of numbers above 0 that rise"),
        ({"pgd": {**PGD, "radii": [0.0, 0.1]}}, "accepted: a list of numbers above 0 that rise"),
        ({"pgd": {**PGD, "radii": []}}, "accepted: a list of numbers above 0 that rise"),
        ({"pgd": {**PGD, "radii": [float("nan")]}}, "radii: found nan, accepted: a list of numbers above 0 that rise"),
        ({"pgd": {**PGD, "levels": ["pre_nl"]}}, "found ['pre_nl'], accepted: a list of pre_ln, post_ln, deberta"),
        ({"pgd": {**PGD, "levels": ["hidden:0"]}}, "found ['hidden:0'], accepted: a list of pre_ln, post_ln, deberta"),
        ({"pgd": {**PGD, "levels": ["pre_ln"] * 2}}, "each at most once"),
        ({"pgd": {**PGD, "steps": 0}}, "robustness: pgd: steps: found 0, accepted: a whole number from 1"),
        ({"pgd": {**PGD, "restarts": True}}, "restarts: found True"),
        ({"pgd": 5}, "robustness: pgd: found 5, accepted: a mapping of the keys levels, radii"),
        ({"characters": {"examples": 5}}, "robustness: characters: queries: missing"),
        (None, "robustness: found None, accepted: a mapping of the keys tests, pgd, characters"),
    ],
)
def test_a_mistake_in_the_entry_is_one_line(spec: Any, message: str):
    with pytest.raises(UserError) as caught:
        parse_spec(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_level_that_the_encoder_has_not_is_told(measure: Callable[..., dict[str, Any]], tmp_path: Path, study: Path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=12, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    transformers.GPT2Model(config).save_pretrained(tmp_path / "tiny")
    (tmp_path / "tasks.yml").write_text(TASKS)
    with pytest.raises(UserError, match="robustness: pgd: levels: GPT2Model has no injection point 'post_ln'; it has"):
        measure({"pgd": PGD}, checkpoint=save(tmp_path, "sentiment"))


def test_tasks_that_have_no_attack_are_told(measure: Callable[..., dict[str, Any]], study: Path, tmp_path: Path):
    with pytest.raises(UserError, match="the task is Regression, accepted: Classification"):
        measure({"pgd": PGD}, checkpoint=save(study, "similarity"))
    with pytest.raises(UserError, match="data_format is PremiseAndOneHypothesis, accepted: PremiseOnly"):
        measure({"characters": {"examples": 1, "queries": 9}}, checkpoint=save(study, "pairs"))
    unlabeled = tmp_path / "sentiment_test.json"
    unlabeled.write_text('{"uid": "0", "token_id": [2, 4, 3], "type_id": [0, 0, 0]}\n')
    with pytest.raises(UserError, match=r"sentiment_test.json: has no labels"):
        measure({"pgd": PGD}, tests=[unlabeled])


def test_texts_that_are_not_those_of_the_tokens_are_told(
    measure: Callable[..., dict[str, Any]], study: Path, tmp_path: Path
):
    tokens = tmp_path / "tiny" / "sentiment_one_test.json"
    tokens.parent.mkdir()
    tokens.write_bytes(files_of(study)[0].read_bytes())
    texts, spec = tmp_path / "sentiment_one_test.tsv", {"characters": {"examples": 25, "queries": 9}}
    with pytest.raises(UserError, match=r"sentiment_one_test.tsv: cannot be read"):
        measure(spec, tests=[tokens])
    lines = (study / "sentiment_one_test.tsv").read_text().splitlines(keepends=True)
    texts.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"holds 24 examples, .*one_test.json 25"):
        measure(spec, tests=[tokens])
    texts.write_text("".join([*lines[:7], "uid\tpositive\tother words\n", *lines[8:]]))
    with pytest.raises(UserError, match=r"one_test.tsv, line 8: the text's tokens are not those in .*one_test.json"):
        measure(spec, tests=[tokens])
