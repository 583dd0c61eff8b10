"""Whole runs: the same seed gives the same parameters, α = 0 is a plain run, a resumed run ends as an unbroken one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

from data_utils.errors import DataError, FlagError, UserError
from data_utils.readers import read_score_file
from mt_dnn.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from mt_dnn.configuration.config import parse_args
from mt_dnn.training.trainer import Trainer, train
from tests.mt_dnn.configuration.test_config import MTDNN_FLAGS
from tests.mt_dnn.runs import DATASETS, RUN, SIFT, SMART, TASK_DEF, assert_same, parameters, tiny_config, tiny_run


def test_the_same_seed_gives_the_same_parameters_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        tiny_run(tmp_path / name, *SIFT, "--seed", seed)
    first, second, other = (parameters(tmp_path / name / "model_1.pt") for name in "abc")
    assert_same(first, second)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("method", [SMART, SIFT], ids=["smart", "sift"])
def test_alpha_zero_is_the_plain_run_bit_for_bit_with_the_search_still_run(
    method: tuple[str, ...], tmp_path: Path
) -> None:
    tiny_run(tmp_path / "plain")
    trainer = Trainer(tiny_config(tmp_path / "zero", *method, "--adv_alpha", "0", "--adv_k", "2"))
    forwards = _count_training_forwards(trainer.model.network.bert)
    trainer.run()
    gain = 3  # forwards at the one update that is logged
    assert len(forwards) == trainer.model.updates * (2 + 2) + gain
    assert_same(parameters(tmp_path / "plain" / "model_1.pt"), parameters(tmp_path / "zero" / "model_1.pt"))


def test_with_alpha_the_run_differs_from_the_plain_one(tmp_path: Path) -> None:
    tiny_run(tmp_path / "plain")
    tiny_run(tmp_path / "sift", *SIFT)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    plain, sift = (parameters(tmp_path / run / "model_1.pt")[name] for run in ("plain", "sift"))
    assert not torch.equal(plain, sift)


def _count_training_forwards(encoder: nn.Module) -> list[int]:
    calls: list[int] = []
    encoder.register_forward_hook(lambda module, _, __: calls.append(1) if module.training else None)
    return calls


@pytest.mark.parametrize("optimizer", ["adamw", "adamax"])
@pytest.mark.parametrize("at", ["within an epoch", "after an epoch"])
def test_a_resumed_run_ends_as_the_unbroken_one(optimizer: str, at: str, tmp_path: Path) -> None:
    flags = (*SIFT, "--optimizer", optimizer, "--grad_accumulation_step", "2")
    flags += ("--save_per_updates_on", "--save_per_updates", "3")
    whole = tiny_run(tmp_path / "whole", *flags)
    checkpoint = "model_0_3.pt" if at == "within an epoch" else "model_0.pt"
    resumed = tiny_run(tmp_path / "resumed", *flags, "--resume", "--model_ckpt", str(tmp_path / "whole" / checkpoint))
    assert_same(parameters(tmp_path / "whole" / "model_1.pt"), parameters(tmp_path / "resumed" / "model_1.pt"))
    assert resumed.history == whole.history
    last = f"{DATASETS.split(',')[0]}_dev_scores_epoch_1.json"
    assert read_score_file(tmp_path / "whole" / last) == read_score_file(tmp_path / "resumed" / last)


TOKENS = ("--max_tokens_per_batch", "60")


@pytest.mark.parametrize("mixing", [(), ("--ratio", "0.5", "--mix_opt", "1")], ids=["all", "ratio"])
def test_a_run_bounded_by_tokens_ends_with_its_schedule_and_resumes(mixing: tuple[str, ...], tmp_path: Path) -> None:
    flags = (*TOKENS, *mixing, "--grad_accumulation_step", "2", "--save_per_updates_on", "--save_per_updates", "3")
    trainer = Trainer(tiny_config(tmp_path / "whole", *flags))
    counts = [trainer.sampler.batches_in(epoch) for epoch in range(2)]
    assert trainer.model.total_updates == sum(math.ceil(count / 2) for count in counts)
    trainer.run()
    assert trainer.model.updates == trainer.model.total_updates
    assert float(trainer.model.schedule.get_last_lr()[0]) == 0
    start = str(tmp_path / "whole" / "model_0_3.pt")
    tiny_run(tmp_path / "resumed", *flags, "--resume", "--model_ckpt", start)
    assert_same(parameters(tmp_path / "whole" / "model_1.pt"), parameters(tmp_path / "resumed" / "model_1.pt"))


def test_a_bound_of_tokens_is_part_of_the_data_order(tmp_path: Path) -> None:
    tiny_run(tmp_path, "--epochs", "1")
    with pytest.raises(DataError, match="--max_tokens_per_batch 0 there, 60 here"):
        tiny_run(tmp_path, "--epochs", "1", "--resume", *TOKENS)
    content = load_checkpoint(tmp_path / "model_0.pt")
    del content["progress"]["flags"]["max_tokens_per_batch"]  # a checkpoint from before the flag
    save_checkpoint(tmp_path / "model_0.pt", content)
    with pytest.raises(DataError, match="--max_tokens_per_batch 0 there, 60 here"):
        tiny_run(tmp_path, "--epochs", "1", "--resume", *TOKENS)
    assert len(tiny_run(tmp_path, "--epochs", "1", "--resume").history) == 1


def test_an_example_beyond_the_bound_of_tokens_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(FlagError, match=r"--max_tokens_per_batch: found 3, but .*cola_train.json holds an example of"):
        Trainer(tiny_config(tmp_path, "--max_tokens_per_batch", "3"))


def test_resume_takes_the_newest_checkpoint_of_the_output_folder(tmp_path: Path) -> None:
    tiny_run(tmp_path, "--epochs", "2")
    before = parameters(tmp_path / "model_1.pt")
    (tmp_path / "model_1.pt").unlink()
    tiny_run(tmp_path, "--epochs", "2", "--resume")
    assert_same(before, parameters(tmp_path / "model_1.pt"))


def test_a_resume_with_another_data_order_is_refused(tmp_path: Path) -> None:
    tiny_run(tmp_path, "--epochs", "2")
    with pytest.raises(DataError, match="--batch_size 8 there, 4 here"):
        tiny_run(tmp_path, "--epochs", "2", "--resume", "--batch_size", "4")


def test_a_checkpoint_of_mtdnn_resumes_with_its_optimizer(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "--resume", "--model_ckpt", str(RUN / "model_0.pt"), "--optimizer", "adamax")
    trainer = Trainer(config)
    load = torch.optim.Optimizer.load_state_dict
    with patch.object(torch.optim.Optimizer, "load_state_dict", autospec=True, side_effect=load) as loaded:
        assert trainer.checkpoints.resume() == (0, 0)
    assert loaded.call_count == 1
    moments = trainer.model.optimizer.state_dict()["state"]
    assert (
        len(moments) == len([p for p in trainer.model.network.parameters()]) - 2
    )  # the encoder's own pooler is unused
    assert all(moment["exp_inf"].abs().sum() > 0 for moment in moments.values())


def test_the_command_line_of_mtdnns_own_run_trains_here(tmp_path: Path) -> None:
    """Every flag that its checkpoint holds is given as it was, but for the paths; so are files and keys."""
    ran = load_checkpoint(RUN / "model_0.pt")
    paths = {"task_def": TASK_DEF, "data_dir": RUN / "tinydata", "init_checkpoint": RUN / "tiny"}
    paths |= {"output_dir": tmp_path, "log_file": tmp_path / "out.log"}
    words: list[str] = []
    for _, name, text, *_ in MTDNN_FLAGS:
        value = paths.get(name, ran["config"][name])
        if text is None or value is None or name == "cuda":  # a switch that was not given; a default
            assert value in (False, None) or name == "vb_dropout"
            continue
        words += [f"--{name}", ",".join(value) if isinstance(value, list) else str(value)]
    result = train(parse_args(words))
    assert len(result.history) == 1
    for dataset in DATASETS.split(","):
        own, theirs = (read_score_file(folder / f"{dataset}_dev_scores_epoch_0.json") for folder in (tmp_path, RUN))
        assert own["uids"] == theirs["uids"] and own["metrics"].keys() == theirs["metrics"].keys()
        assert len(own["scores"]) == len(theirs["scores"])
    written = load_checkpoint(tmp_path / "model_0.pt")
    assert written["state"].keys() == ran["state"].keys() and ran["config"].keys() <= written["config"].keys()
    steps, their_steps = (
        {float(own["step"]) for own in content["optimizer"]["state"].values()} for content in (written, ran)
    )
    assert steps == their_steps  # as many updates


def test_a_run_writes_score_files_checkpoints_and_its_results(tmp_path: Path) -> None:
    result = tiny_run(tmp_path, *SIFT)
    for dataset in DATASETS.split(","):
        scores = read_score_file(tmp_path / f"{dataset}_dev_scores_epoch_1.json")
        assert scores["metrics"] == result.history[1]["metrics"][f"{dataset}_dev"]
        assert len(scores["uids"]) == 10
    assert json.loads((tmp_path / "results.json").read_text())["best_epoch"] == result.best_epoch
    assert result.metrics == result.history[result.best_epoch]["metrics"]
    assert result.seconds_per_update > 0
    assert "R " in (tmp_path / "log.txt").read_text()
    assert not list(tmp_path.glob("*.tmp"))


def test_the_best_epoch_is_the_one_of_the_chosen_metric_and_early_stop_counts_from_it(tmp_path: Path) -> None:
    flags = ("--epochs", "12", "--best_metric", "cola:ACC", "--early_stop", "2", "--learning_rate", "1e-7")
    result = tiny_run(tmp_path, *flags)
    values = [entry["metrics"]["cola_dev"]["ACC"] for entry in result.history]
    assert result.best_epoch == values.index(max(values))
    assert len(values) == result.best_epoch + 3
    assert tiny_run(tmp_path, *flags, "--resume").history == result.history


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--test_datasets", "colla"), "did you mean 'cola'"),
        (("--train_datasets", "cola", "--test_datasets", "stsb"), "task stsb, which is not trained"),
        (("--best_metric", "cola:MCCC"), "did you mean 'MCC'"),
        (("--best_metric", "sst:ACC"), "no development set 'sst'"),
        (("--test_datasets", "cola_extra"), "cola_extra_dev.json: missing; make it with: python prepro_std.py"),
        (("--init_checkpoint", "no-such-folder-or-model"), "no-such-folder-or-model"),
        (("--task_def", "nowhere.yml"), "nowhere.yml: missing"),
        (("--output_dir", "/dev/null/out"), "/dev/null/out: cannot be written to"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_accepted(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        tiny_run(tmp_path, *flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_level_that_the_encoder_does_not_have_is_a_flag_error(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(vocab_size=200, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(FlagError, match="GPT2Model has no injection point 'post_ln'; it has: pre_ln"):
        Trainer(tiny_config(tmp_path, *SIFT, "--init_checkpoint", str(tmp_path / "gpt2")))


def test_parameters_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(tmp_path, "--epochs", "2"))
    save = trainer.checkpoints.save

    def spoil(name: str, *progress: int) -> None:
        save(name, *progress)
        trainer.model.network.scoring_list[0][1].bias.data.fill_(math.nan)

    trainer.checkpoints.save = spoil  # type: ignore[method-assign]
    with pytest.raises(UserError, match="parameters are not finite after update"):
        trainer.run()
    assert (tmp_path / "model_0.pt").is_file()
    assert not (tmp_path / "model_1.pt").exists()


def test_a_frozen_encoder_does_not_move(tmp_path: Path) -> None:
    tiny_run(tmp_path, "--update_bert_opt", "1", *SIFT)
    first, last = parameters(tmp_path / "model_0.pt"), parameters(tmp_path / "model_1.pt")
    moved = {name.split(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert moved == {"scoring_list"}


def test_glue_submission_tables_hold_class_names_and_regression_outputs(tmp_path: Path) -> None:
    tiny_run(tmp_path, "--epochs", "1", "--glue_format_on")
    lines = (tmp_path / "mnli_matched_dev_scores_epoch_0.tsv").read_text().splitlines()
    predictions = read_score_file(tmp_path / "mnli_matched_dev_scores_epoch_0.json")["predictions"]
    names = ["contradiction", "neutral", "entailment"]
    assert lines == ["index\tprediction", *(f"{uid}\t{names[index]}" for uid, index in enumerate(predictions))]
    outputs = [
        float(line.split("\t")[1]) for line in (tmp_path / "stsb_dev_scores_epoch_0.tsv").read_text().splitlines()[1:]
    ]
    assert outputs == pytest.approx(read_score_file(tmp_path / "stsb_dev_scores_epoch_0.json")["scores"])


@pytest.mark.parametrize(
    ("tokens", "last_type", "message"),
    [
        ([101, 200, 102], 0, "token id 200; the encoder's vocabulary has 200"),
        ([5] * 33, 0, "33 tokens; the encoder has 32"),
        ([101, 102], 2, "token type 2; the encoder knows 2, counted from 0"),
    ],
)
def test_data_of_another_tokenizer_is_named(tokens: list[int], last_type: int, message: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "dev"):
        own = tokens if split == "dev" else [101, 102]
        types = [0] * (len(own) - 1) + [last_type if split == "dev" else 0]
        example = {"uid": "0", "label": 1, "token_id": own, "type_id": types}
        (data / f"cola_{split}.json").write_text(json.dumps(example) + "\n")
    flags = ("--data_dir", str(data), "--train_datasets", "cola", "--test_datasets", "cola")
    with pytest.raises(DataError, match=message):
        tiny_run(tmp_path / "out", *flags)


def test_padding_to_more_tokens_than_the_encoder_has_positions_is_told(tmp_path: Path) -> None:
    with pytest.raises(FlagError, match=r"--do_padding: pads to --max_seq_len, 40; the encoder has 32 positions"):
        tiny_run(tmp_path, "--do_padding", "--max_seq_len", "40")


def test_bfloat16_runs_and_skips_no_example(tmp_path: Path) -> None:
    result = tiny_run(tmp_path, "--bf16", *SIFT, "--log_per_updates", "1")
    log = (tmp_path / "log.txt").read_text()
    assert log.count("skipped 0,") == 18
    assert len(result.history) == 2


def test_a_metric_that_a_task_does_not_have_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    three = TASK_DEF.read_text().replace("n_class: 3, metric_meta: [ACC]", "n_class: 3, metric_meta: [ACC, F1]")
    (tmp_path / "tasks.yml").write_text(three)
    with pytest.raises(UserError, match="task 'mnli', key 'metric_meta': found F1, accepted: ACC, MCC, F1MAC, F1MIC"):
        tiny_run(tmp_path / "run", "--task_def", str(tmp_path / "tasks.yml"))


def test_an_evaluation_that_fails_loses_nothing_of_the_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--epochs", "1", "--grad_accumulation_step", "2")
    with monkeypatch.context() as patch:
        patch.setattr("mt_dnn.training.trainer.write_score_file", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny_run(tmp_path, *flags)
    (kept,) = tmp_path.glob("model_*.pt")
    assert kept.name.startswith("model_0_")
    tiny_run(tmp_path, *flags, "--resume")
    whole = tiny_run(tmp_path / "whole", *flags)
    assert_same(parameters(tmp_path / "model_0.pt"), parameters(tmp_path / "whole" / "model_0.pt"))
    assert json.loads((tmp_path / "results.json").read_text())["history"] == whole.history
