"""The model card: the Hub's metadata, what a reader wants to know, and names that cannot break either."""

from __future__ import annotations

import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from data_utils.storage.text_files import write_lines
from mt_dnn.configuration.config import Config, parse_args
from mt_dnn.export.export import export
from mt_dnn.export.model_card import TrainedModel, model_card, train_command
from mt_dnn.training.trainer import train
from tasks.definition import TaskDef
from tests.mt_dnn.runs import RUN, TASK_DEF, tiny_config

HOSTILE = (
    "a|b",
    "---",
    "`x` ``y``",
    "<script>1</script>",
    "[l](u) ![i](j)",
    "*_~$",
    "two\nlines",
    "\u2028",
    "{{ x }}",
    "好",
)


def task_def(**changes: Any) -> TaskDef:
    entry = {"data_format": "PremiseOnly", "task_type": "Classification", "n_class": 2, "metric_meta": ["ACC"]}
    return TaskDef.from_yaml({**entry, **changes})


def trained(*flags: str, **changes: Any) -> TrainedModel:
    config = parse_args(flags)
    told: dict[str, Any] = {"place": "my-model", "config": config, "tasks": {"sst": task_def()}}
    return TrainedModel(**{**told, "command": train_command(config, 1), **changes})


def tokens(card: ModelCard) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(card.text)


def rows(card: ModelCard, heading: str) -> list[list[str]]:
    """The cells of the table under a heading as a reader sees them, header aside."""
    found: list[list[str]] = []
    inside, in_body = False, False
    for before, token in zip([None, *tokens(card)], tokens(card), strict=False):
        if before is not None and before.type == "heading_open":
            inside = token.content == heading
        if token.type in ("tbody_open", "tbody_close"):
            in_body = token.type == "tbody_open"
        if inside and in_body and token.type == "tr_open":
            found.append([])
        if inside and in_body and token.type == "inline":
            found[-1].append("".join(child.content for child in token.children or ()))
    return found


def code(card: ModelCard, language: str) -> str:
    (block,) = [token.content for token in tokens(card) if token.type == "fence" and token.info == language]
    return block


def metadata(card: ModelCard) -> dict[str, Any]:
    """The block between the dashes, read as the Hub reads it."""
    _, block, _ = str(card).split("---\n", 2)
    return yaml.safe_load(block)


def test_the_metadata_are_the_hubs() -> None:
    metrics = {"sst_dev": {"ACC": 87.5, "MCC": -12.5, "CMAT_0_1": 3.0}, "sst_two_test": {"F1MAC": 50.0}}
    card = model_card(trained("--adv_train", "--adv_norm_level", "post_ln", metrics=metrics, epoch=1))
    found = metadata(card)
    assert found["library_name"] == "transformers" and found["pipeline_tag"] == "text-classification"
    assert found["base_model"] == "bert-base-uncased"
    assert found["tags"] == ["adversarial-training", "sift"]
    assert found["metrics"] == ["accuracy", "matthews_correlation", "f1"]
    (index,) = found["model-index"]
    assert index["name"] == "my-model"
    shown = [
        (result["dataset"]["name"], result["dataset"]["split"], [(m["type"], m["value"]) for m in result["metrics"]])
        for result in index["results"]
    ]
    assert shown == [
        ("sst", "dev", [("accuracy", 0.875), ("matthews_correlation", -0.125)]),
        ("sst_two", "test", [("f1", 0.5)]),
    ]
    assert rows(card, "Results") == [
        ["sst_dev", "ACC 87.50, MCC -12.50, CMAT_0_1 3.00"],
        ["sst_two_test", "F1MAC 50.00"],
    ]
    assert "model-index" not in metadata(model_card(trained()))


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("microsoft/deberta-v3-base", "microsoft/deberta-v3-base"),
        ("embedded-minilm", "sentence-transformers/all-MiniLM-L6-v2"),
        ("embedded-mpnet", "sentence-transformers/all-mpnet-base-v2"),
        (str(RUN / "tiny"), None),
        ("checkpoint/model_2.pt", None),
        ("a/b/c", None),
    ],
)
def test_the_base_model_is_one_of_the_hub_or_none(encoder: str, expected: str | None) -> None:
    assert metadata(model_card(trained("--init_checkpoint", encoder))).get("base_model") == expected


@pytest.mark.parametrize(
    ("flags", "title", "there", "not_there"),
    [
        ("", "Plain fine-tuning, without noise.", (), ("`--adv_opt`",)),
        ("--adv_train", "SMART at pre_ln.", ("--adv_radius", "--adv_k"), ("--adv_epsilon", "--bregman_mu")),
        ("--adv_train --adv_norm_level deberta", "SiFT at deberta.", ("--adv_step_size",), ("--adv_every",)),
        ("--adv_train --adv_opt vat --adv_norm_level post_ln", "VAT at post_ln.", ("--adv_alpha",), ()),
        ("--adv_train --adv_norm_level hidden:-1", "SMART at hidden:-1.", ("--adv_step_size",), ()),
        ("--adv_train --adv_opt freelb", "FreeLB at pre_ln.", ("--adv_k",), ("--adv_alpha",)),
        ("--adv_train --adv_preset mtdnn_release", "SMART at pre_ln.", ("--adv_epsilon",), ("--adv_radius",)),
        ("--adv_train --adv_every 2", "SMART at pre_ln.", ("--adv_every",), ()),
        (
            "--bregman_mu 1",
            "Without noise, with SMART's Bregman proximal point term.",
            ("--bregman_beta",),
            ("--adv_k",),
        ),
    ],
)
def test_the_method_is_told_with_the_settings_that_matter(
    flags: str, title: str, there: tuple[str, ...], not_there: tuple[str, ...]
) -> None:
    card = model_card(trained(*flags.split()))
    assert title in card.text.replace("`", "")
    shown = {name: value for name, value in rows(card, "Method")}
    assert set(there) <= shown.keys() and not shown.keys() & set(not_there)
    if "--adv_radius" in there:
        assert shown["--adv_radius"] == "0.03"


def test_hyperparameters_have_their_values() -> None:
    shown = dict(rows(model_card(trained("--learning_rate", "3e-5", "--fp16", "--seed", "7")), "Hyperparameters"))
    assert (shown["--learning_rate"], shown["--fp16"], shown["--seed"]) == ("3e-05", "true", "7")
    assert "--bf16" not in shown and "--batch_size" in shown
    by_tokens = dict(rows(model_card(trained("--max_tokens_per_batch", "900")), "Hyperparameters"))
    assert by_tokens["--max_tokens_per_batch"] == "900" and "--batch_size" not in by_tokens


@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_gives_the_configuration_again(processes: int) -> None:
    flags = [
        "--train_datasets",
        "a,b",
        "--adv_train",
        "true",
        "--vb_dropout",
        "--no_group_by_length",
        "--fp16",
        "false",
    ]
    flags += ["--data_dir", "it's `a` $HOME;\n```\nfolder", "--adv_opt", "1", "--best_metric", "a:ACC", "--warmup", "0"]
    config = parse_args(flags)
    card = model_card(trained(config=config, command=train_command(config, processes)))
    words = shlex.split(code(card, "bash").replace(" \\\n", " "))
    start = ["python"] if processes == 1 else ["torchrun", "--nproc_per_node", "2"]
    assert words[: len(start) + 1] == [*start, "train.py"]
    assert parse_args(words[len(start) + 1 :]) == config != parse_args([])


def test_the_command_leaves_out_what_changes_nothing_and_what_was_of_a_resume() -> None:
    given = [
        "--batch_size",
        "8",
        "--epochs",
        "3",
        "--resume",
        "--model_ckpt",
        "x.pt",
        "--adv_alpha",
        "3",
        "--adv_train",
        "--adv_preset",
        "",
    ]
    command = train_command(parse_args(given), 1)
    assert command == ["python", "train.py", "--epochs", "3", "--adv_alpha", "3.0", "--adv_train"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_break_neither_metadata_nor_page(name: str) -> None:
    labels = [f"{name}{number}" for number in range(2)]
    ordinary = model_card(trained(tasks={"sst": task_def(labels=["one", "two"])}, metrics={"sst_dev": {"ACC": 50.0}}))
    card = model_card(
        trained(
            place=f"models/{name}/{name}" if "\n" not in name else name,
            tasks={name: task_def(labels=labels)},
            examples={f"{name}_train": 3},
            metrics={f"{name}_dev": {"ACC": 50.0}},
        )
    )
    one_line = name.replace("\n", "\\n").replace("\u2028", "\\u2028")
    assert rows(card, "Tasks")[0][2] == f"{one_line}0, {one_line}1"
    assert rows(card, "Data") == [[f"{one_line}_train.json", "3"]]
    assert rows(card, "Results") == [[f"{one_line}_dev", "ACC 50.00"]]
    result = metadata(card)["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == one_line
    compile(code(card, "python"), "card", "exec")

    def shape(page: ModelCard) -> list[str]:
        kinds = [token.type for token in tokens(page)]
        inner = [child.type for token in tokens(page) for child in token.children or ()]
        start = kinds.index("tbody_open")
        return [kind for kind in kinds[:start] if kind != "text_special"] + [
            kind for kind in inner if kind not in ("text", "text_special", "entity")
        ]

    assert shape(card) == shape(ordinary)
    assert {token.type for token in tokens(card)}.isdisjoint({"html_block", "hr"})


def test_a_run_tells_its_data_and_the_metrics_of_the_epoch_that_it_wrote(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.yml"
    tasks.write_text(TASK_DEF.read_text().replace("}", ", actf: tanh}"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film"]
    (tmp_path / "tokenizer").mkdir()
    write_lines(tmp_path / "tokenizer" / "vocab.txt", words)
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    flags = ("--task_def", str(tasks), "--tokenizer", str(tmp_path / "tokenizer"), "--epochs", "2")
    result = train(tiny_config(tmp_path / "out", *flags, "--save_hf", str(tmp_path / "hf")))
    card = ModelCard.load(tmp_path / "hf" / "README.md")
    examples = dict(rows(card, "Data"))
    assert examples["cola_train.json"] == "24" and examples["mnli_mismatched_dev.json"] == "10" and len(examples) == 7
    shown = dict(rows(card, "Results"))
    assert shown.keys() == result.metrics.keys()
    assert shown["cola_dev"].startswith(f"ACC {result.metrics['cola_dev']['ACC']:.2f}, MCC ")
    assert f"after epoch {result.best_epoch}," in card.text
    assert [row[1] for row in rows(card, "Tasks")] == [
        "Classification of a text", "Classification of a pair of texts", "Regression of a pair of texts",
    ]  # fmt: skip
    (tmp_path / "use.py").write_text(code(card, "python"))
    assert "classify" in runpy.run_path(str(tmp_path / "use.py"))

    checkpoint = tmp_path / "out" / f"model_{result.best_epoch}.pt"
    export(checkpoint, tmp_path / "again", command=["python", "-m", "it"])
    again = ModelCard.load(tmp_path / "again" / "README.md")
    assert rows(again, "Results") == rows(card, "Results") and again.data.to_dict()["model-index"][0]["name"] == "again"
    assert dict(rows(again, "Data")).items() <= examples.items()
    assert rows(again, "Hyperparameters") == rows(card, "Hyperparameters")
    assert code(again, "bash") == "python -m it\n"


def test_a_checkpoint_that_tells_something_else_gives_a_card_without_it(tmp_path: Path) -> None:
    from mt_dnn.export.export import _trained

    written: Any = SimpleNamespace(task_defs={"sst": task_def()})
    flat = Config().to_flat()
    for progress in (None, {}, {"sizes": 3}, {"sizes": {"a": []}}, {"sizes": {}, "random_states": [], "history": [1]}):
        card = model_card(_trained({"progress": progress}, flat, "hf", written, ()))
        assert rows(card, "Results") == [] == rows(card, "Data")
    inside: dict[str, Any] = {"sizes": {"a_train": [5, 9]}, "random_states": [1], "epoch": 1, "batches_done": 2}
    inside["history"] = [{"epoch": 0, "metrics": {"a_dev": {"ACC": 1.0}}}]
    card = model_card(_trained({"progress": inside}, flat, "hf", written, ()))
    assert rows(card, "Data") == [["a_train.json", "5"]] and rows(card, "Results") == []
