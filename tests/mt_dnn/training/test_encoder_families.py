"""Whole runs over encoder families beside BERT: trained plainly and under noise, saved, and read back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import transformers

import predict
from data_utils.errors import DataError, FlagError, TaskDefError
from data_utils.readers import read_score_file
from docs_build.encoder_families import FAMILIES as ENCODERS
from docs_build.encoder_families import tiny_model
from mt_dnn.checkpoints.checkpoint import load_checkpoint
from mt_dnn.configuration.config import Config, parse_args
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.perturbation.injection import NoiseInjection
from mt_dnn.training.trainer import train
from tasks.definition import TaskDefs
from tests.encoder_folder import write_encoder
from tests.mt_dnn.runs import SIFT, SMART

TASKS = "toy: {data_format: PremiseOnly, task_type: Classification, n_class: 2, metric_meta: [ACC]}"
FAMILIES = {"xlnet": (SMART,), "t5": (SMART,), "albert": (SMART, SIFT), "xlm_roberta": (SMART, SIFT)}
RUNS = [(family, method) for family, methods in FAMILIES.items() for method in ((), *methods)]


def write_data(folder: Path) -> None:
    """Sentences of several lengths; the label says whether the first word comes again."""
    draw = random.Random(1)
    (folder / "tasks.yml").write_text(TASKS)
    for split, count in (("train", 96), ("dev", 24)):
        lines = []
        for number in range(count):
            tokens = [4, *(draw.randint(6, 20) for _ in range(draw.randint(3, 9))), 3]
            example = {"uid": str(number), "label": int(tokens[1] in tokens[2:]), "token_id": tokens}
            lines.append(json.dumps(example | {"type_id": [0] * len(tokens)}) + "\n")
        (folder / f"toy_{split}.json").write_text("".join(lines))


def flags_of(folder: Path, encoder: Path | str, *flags: str) -> list[str]:
    base = (
        f"--task_def {folder / 'tasks.yml'} --data_dir {folder} --train_datasets toy --test_datasets toy --epochs 2 "
        f"--init_checkpoint {encoder} --output_dir {folder / 'out'} --log_file {folder / 'log.txt'} "
        "--optimizer adamw --learning_rate 1e-3 --batch_size 16 --dataloader_num_workers 0"
    )
    return [*base.split(), *flags]


@pytest.mark.parametrize(("family", "method"), RUNS)
def test_an_encoder_trains_and_its_checkpoint_predicts_as_it_did(tmp_path: Path, family: str, method: tuple[str, ...]):
    write_data(tmp_path)
    encoder = write_encoder(tmp_path / family, family)
    train(parse_args(flags_of(tmp_path, encoder, *method)))
    output = tmp_path / "out"
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["kind"] == "update")
    assert ("R" in first) == bool(method) and (not method or first["R"] > 0)
    untrained = load_checkpoint(output / "model_0.pt")["state"]
    moved = {
        name for name, tensor in load_checkpoint(output / "model_1.pt")["state"].items()
        if not torch.equal(tensor, untrained[name])
    }  # fmt: skip
    assert {"scoring_list.0.1.weight"} < moved and sum(name.startswith("bert.") for name in moved) > 5
    predict.main([
        "--task_def", str(tmp_path / "tasks.yml"), "--task", "toy", "--with_label", "--prep_input",
        str(tmp_path / "toy_dev.json"), "--checkpoint", str(output / "model_1.pt"), "--score", str(tmp_path / "again"),
    ])  # fmt: skip
    expected, found = read_score_file(output / "toy_dev_scores_epoch_1.json"), read_score_file(tmp_path / "again")
    assert found["predictions"] == expected["predictions"]
    torch.testing.assert_close(torch.tensor(found["scores"]), torch.tensor(expected["scores"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ENCODERS)
def test_noise_of_no_size_gives_the_clean_output_of_every_family(tmp_path: Path, family: str):
    """With token types, which GPT-2 would look up among the words, and take the noise for them a second time."""
    (tmp_path / "tasks.yml").write_text(TASKS)
    encoder = tiny_model(family)
    if encoder.config.is_encoder_decoder:
        encoder = encoder.get_encoder()
    task_def = TaskDefs(tmp_path / "tasks.yml").get_task_def("toy")
    network = SANBertNetwork({"task_def_list": [task_def]}, encoder).double().eval()
    ids, mask = torch.randint(6, 20, (2, 8)), torch.ones(2, 8, dtype=torch.long)
    types = torch.zeros_like(ids)
    mask[1, 5:] = 0
    if getattr(encoder.config, "type_vocab_size", None) == 2:
        types[0, 4:] = 1
    passes = []

    def count(h: torch.Tensor) -> torch.Tensor:
        passes.append(h.shape)
        return h

    with NoiseInjection(network.encoder, "pre_ln").add(count):
        found = network.encode(ids, types, mask)
    assert len(passes) == 1
    torch.testing.assert_close(found[mask == 1], network.encode(ids, types, mask)[mask == 1], rtol=0, atol=0)


def test_of_an_encoder_decoder_a_classifier_has_the_encoder_alone(tmp_path: Path):
    write_data(tmp_path)
    train(parse_args(flags_of(tmp_path, write_encoder(tmp_path / "t5", "t5"), "--epochs", "1")))
    state = load_checkpoint(tmp_path / "out" / "model_0.pt")["state"]
    assert "bert.encoder.embed_tokens.weight" in state and not any("decoder" in name for name in state)
    # which goes on from its own checkpoint
    again = flags_of(tmp_path, tmp_path / "out" / "model_0.pt", "--epochs", "1", "--output_dir", str(tmp_path / "b"))
    assert train(parse_args(again)).history


@pytest.mark.parametrize("family", ["t5", "xlnet"])
def test_without_a_layer_norm_in_the_embedding_block_only_pre_ln_is_there(tmp_path: Path, family: str):
    write_data(tmp_path)
    encoder = write_encoder(tmp_path / family, family)
    with pytest.raises(FlagError, match=r"--adv_norm_level: .* has no injection point 'post_ln'; it has: pre_ln"):
        train(parse_args(flags_of(tmp_path, encoder, *SIFT)))


@pytest.mark.parametrize(
    ("level", "flags"),
    [
        ("hidden:-1", ()),
        ("hidden:-1", ("--adv_free",)),
        ("hidden:-1", ("--adv_opt", "freelb")),
        ("pre_ln,hidden:0,hidden:1", ()),
        ("pre_ln,hidden:0,hidden:1", ("--adv_opt", "freelb")),
    ],
)
@pytest.mark.parametrize("family", ["albert", "xlnet"])
def test_noise_at_the_output_of_a_layer_trains(tmp_path: Path, family: str, level: str, flags: tuple[str, ...]):
    write_data(tmp_path)
    encoder = write_encoder(tmp_path / family, family)
    own = ("--adv_train", "--adv_norm_level", level, "--epochs", "2", *flags)
    train(parse_args(flags_of(tmp_path, encoder, *own)))
    output = tmp_path / "out"
    saved = load_checkpoint(output / "model_1.pt")["config"]
    assert saved["adv_norm_level"] == level
    assert Config.from_flat(saved).adversarial.adv_norm_level == level


def test_a_layer_that_the_encoder_does_not_have_is_refused_with_those_that_it_has(tmp_path: Path):
    write_data(tmp_path)
    encoder = write_encoder(tmp_path / "bert", "bert")
    with pytest.raises(FlagError, match=r"^--adv_norm_level: BertModel has no layer 9; accepted: hidden:0[^\n]*$"):
        train(parse_args(flags_of(tmp_path, encoder, "--adv_train", "--adv_norm_level", "hidden:9")))
    with pytest.raises(FlagError, match=r"^--adv_norm_level: hidden:\d and hidden:-1 are one place of BertModel; acc"):
        last = f"hidden:{transformers.AutoConfig.from_pretrained(encoder).num_hidden_layers - 1},hidden:-1"
        train(parse_args(flags_of(tmp_path, encoder, "--adv_train", "--adv_norm_level", last)))


def test_encoders_that_are_not_public_are_refused_by_name(tmp_path: Path):
    with pytest.raises(FlagError, match="--encoder_type: found 12, MSRLONGT5G, which is not public"):
        parse_args(["--encoder_type", "12"])
    with pytest.raises(FlagError, match="--encoder_type: found '14', accepted: 1, 2, 3, 4, 5"):
        parse_args(["--encoder_type", "14"])
    assert parse_args(["--encoder_type", "9"]).model.encoder_type == 9
    (tmp_path / "tasks.yml").write_text(TASKS.replace("}", ", encoder_type: MSRT5}"))
    with pytest.raises(TaskDefError, match="'encoder_type': found MSRT5, a model that is not public, accepted: BERT"):
        TaskDefs(tmp_path / "tasks.yml")


def test_an_encoder_that_does_not_stand_alone_is_told(tmp_path: Path):
    import transformers

    write_data(tmp_path)
    transformers.BartConfig(vocab_size=40, d_model=8, encoder_layers=1, decoder_layers=1).save_pretrained(
        tmp_path / "b"
    )
    with pytest.raises(DataError, match="the encoder of bart cannot be loaded without its decoder"):
        train(parse_args(flags_of(tmp_path, tmp_path / "b")))
