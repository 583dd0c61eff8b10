"""What TensorBoard is given, read back by TensorBoard."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from data_utils.errors import Stopped
from mt_dnn.batcher import Batch
from mt_dnn.model import MTDNNModel
from mt_dnn.perturbation.delta import Delta
from mt_dnn.perturbation.search import Search
from mt_dnn.reporting.curves import Curves
from mt_dnn.training.trainer import Trainer
from tests.mt_dnn.runs import RUN, SIFT, TASK_DEF, tiny_config, tiny_run
from tests.mt_dnn.training.test_stopping import stop_at
from tests.terminal import run_in_terminal

ROOT = Path(__file__).parents[3]
SHARES = "train/delta_share"
NO_DROPOUT = ("--dropout_p", "0", "--bert_dropout_p", "0")
ONE_TASK = ("--train_datasets", "mnli", "--test_datasets", "mnli_matched", "--epochs", "1")


def tensorboard(folder: Path) -> list[str]:
    return ["--tensorboard", "--tensorboard_logdir", str(folder / "tb")]


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tb"), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    found.Reload()
    return found


def hparams_of(folder: Path) -> dict[str, HParamsPluginData]:
    """What the HParams dashboard finds of a run, by tag."""
    found = EventMultiplexer().AddRunsFromDirectory(str(folder / "tb"))
    found.Reload()
    tags = found.PluginRunToTagToContent(metadata.PLUGIN_NAME).get(".", {})
    return {tag: HParamsPluginData.FromString(content) for tag, content in tags.items()}


class Watch:
    """‖δ‖/‖h‖ of every real token, by update, worked out again from the tensors of each search."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shares: dict[int, list[float]] = {}
        update, statistics = MTDNNModel.update, Search.statistics

        def watched_update(model: MTDNNModel, *batches: Batch, **options: Any) -> Any:
            self.update = model.updates + 1
            return update(model, *batches, **options)

        def watched(search: Search) -> Any:
            (found,) = search.deltas.values()
            for row, mask in enumerate(found.mask.tolist()):
                for token in range(sum(mask)):
                    delta, h = (x.detach()[row, token].double() for x in (found.value, found.h))
                    share = (delta.square().sum() / h.square().sum()).sqrt()
                    self.shares.setdefault(self.update, []).append(float(share))
            return statistics(search)

        monkeypatch.setattr(MTDNNModel, "update", watched_update)
        monkeypatch.setattr(Search, "statistics", watched)


def assert_holds(histogram: Any, expected: Sequence[float]) -> None:
    """The histogram is that of these numbers."""
    assert histogram.num == len(expected)
    assert (histogram.min, histogram.max) == pytest.approx((min(expected), max(expected)), rel=1e-5)
    assert histogram.sum == pytest.approx(sum(expected), rel=1e-5)
    assert histogram.sum_squares == pytest.approx(sum(share * share for share in expected), rel=1e-5)
    below = np.cumsum(histogram.bucket)
    for limit, count in zip(histogram.bucket_limit, below, strict=True):
        near = sum(abs(share - limit) < 1e-6 * limit for share in expected)
        assert abs(sum(share <= limit for share in expected) - count) <= near


def test_the_losses_and_metrics_are_curves(tmp_path: Path) -> None:
    tiny_run(tmp_path, *SIFT, *tensorboard(tmp_path), "--log_per_updates", "1")
    found = events(tmp_path)
    losses = found.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, 19))
    assert all(event.value > 0 for event in found.Scalars("train/R"))
    assert len(found.Scalars("cola_dev/ACC")) == 2


@pytest.mark.parametrize(
    "flags",
    [
        (*SIFT, "--adv_radius", "0.4", "--adv_k", "2"),
        (*SIFT, "--grad_accumulation_step", "2", "--batch_size", "5"),
        ("--adv_train", "--adv_opt", "random"),
        ("--adv_train", "--adv_opt", "freelb", "--adv_k", "2"),
        (*SIFT, "--adv_free", "--adv_radius", "0.4"),
    ],
    ids=["sift", "accumulated", "random", "freelb", "kept noise"],
)
def test_the_histogram_is_that_of_the_logged_updates_tokens(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    tiny_run(tmp_path, *ONE_TASK, *flags, *tensorboard(tmp_path), "--log_per_updates", "2")
    histograms = events(tmp_path).Histograms(SHARES)
    assert [event.step for event in histograms] == [1, *(update for update in watch.shares if update % 2 == 0)]
    for event in histograms:
        assert_holds(event.histogram_value, watch.shares[event.step])


def test_relative_noise_of_length_has_its_radius_as_the_largest_share(tmp_path: Path) -> None:
    tiny_run(tmp_path, *ONE_TASK, *SIFT, "--adv_radius", "0.2", "--adv_step_size", "1", *tensorboard(tmp_path))
    (event,) = events(tmp_path).Histograms(SHARES)
    assert (event.histogram_value.min, event.histogram_value.max) == pytest.approx((0.2, 0.2), rel=1e-4)


def test_between_regularized_updates_the_last_one_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    flags = ("--adv_every", "3", "--batch_size", "4", "--log_per_updates", "2")
    tiny_run(tmp_path, *ONE_TASK, *SIFT, *flags, *tensorboard(tmp_path))
    assert list(watch.shares) == [3, 6]
    shown = {event.step: event.histogram_value for event in events(tmp_path).Histograms(SHARES)}
    assert list(shown) == [4, 6]
    assert_holds(shown[4], watch.shares[3])
    assert_holds(shown[6], watch.shares[6])


def test_without_tensorboard_or_regularizer_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    relative_sizes = Search.relative_sizes
    monkeypatch.setattr(Search, "relative_sizes", lambda search: calls.append(search) or relative_sizes(search))
    tiny_run(tmp_path / "plain", *ONE_TASK, *tensorboard(tmp_path / "plain"))
    assert SHARES not in events(tmp_path / "plain").Tags()["histograms"]
    tiny_run(tmp_path / "sift", *ONE_TASK, *SIFT, "--log_per_updates", "1")
    assert not calls
    tiny_run(tmp_path / "on", *ONE_TASK, *SIFT, *tensorboard(tmp_path), "--batch_size", "4", "--log_per_updates", "5")
    assert len(calls) == 2  # updates 1 and 5 of six


def test_tokens_without_a_vector_are_left_out() -> None:
    h, delta = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [6.0, 8.0], [1.0, 1.0]]]), torch.ones(1, 4, 2)
    found = Delta.__new__(Delta)
    found.h, found.value, found.mask = h, delta, torch.tensor([[1, 1, 1, 0]])
    assert found.relative_sizes().tolist() == pytest.approx([2**0.5 / 5, 2**0.5 / 10])


def test_of_no_tokens_there_is_no_histogram(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "tb")
    curves.add_histogram("x", np.zeros(0, dtype=np.float32), 1)
    curves.add_histogram("x", np.ones(2, dtype=np.float32), 2)
    curves.close()
    assert [event.step for event in events(tmp_path).Histograms("x")] == [2]


def test_two_processes_show_the_tokens_of_both(tmp_path: Path) -> None:
    """15 examples in batches of 7, two an update: of the last batch, one example, the second process has none."""
    flags = [*ONE_TASK, *SIFT, *NO_DROPOUT, "--batch_size", "7", "--grad_accumulation_step", "2"]
    flags += ["--log_per_updates", "1", "--adv_radius", "0.4", "--data_dir", str(tmp_path / "data")]
    (tmp_path / "data").mkdir()
    for name, count in (("mnli_train", 15), ("mnli_matched_dev", 4)):
        lines = (RUN / "tinydata" / f"{name}.json").read_text().splitlines(keepends=True)
        (tmp_path / "data" / f"{name}.json").write_text("".join(lines[:count]))
    tiny_run(tmp_path / "one", *flags, *tensorboard(tmp_path / "one"))
    two = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "train.py"]
    command += ["--task_def", str(TASK_DEF), "--init_checkpoint", str(RUN / "tiny"), "--optimizer", "adamw"]
    command += ["--output_dir", str(two), "--log_file", str(two / "log.txt"), "--learning_rate", "1e-3"]
    command += ["--dataloader_num_workers", "0", *flags, *tensorboard(two)]
    code, text = run_in_terminal(command, 80, ROOT, {"OMP_NUM_THREADS": "1"})
    assert code == 0, text[-3000:]
    pairs = zip(*(events(folder).Histograms(SHARES) for folder in (tmp_path / "one", two)), strict=True)
    shown = [(ours.histogram_value, theirs.histogram_value) for ours, theirs in pairs]
    assert len(shown) == 2 and shown[0][0].num > shown[1][0].num > 0
    for ours, theirs in shown:
        assert theirs.num == ours.num
        assert (theirs.min, theirs.max, theirs.sum) == pytest.approx((ours.min, ours.max, ours.sum), rel=1e-3)
    assert text.count("| 0/2 [") == 1, "both have a bar"


def assert_has_result(folder: Path, flags: dict[str, Any]) -> None:
    """What the dashboard reads is there: flags, the best epoch's metrics among the curves, a good end."""
    result = json.loads((folder / "results.json").read_text())
    metrics = next(entry["metrics"] for entry in result["history"] if entry["epoch"] == result["best_epoch"])
    expected = {f"best/{name}/{metric}": value for name, own in metrics.items() for metric, value in own.items()}
    expected["best/epoch"] = result["best_epoch"]
    found = hparams_of(folder)
    assert len(expected) > 1
    curves = events(folder)
    named = {tag for tag in curves.Tags()["scalars"] if tag.startswith("best/")}
    assert {tag: curves.Scalars(tag)[-1].value for tag in named} == pytest.approx(expected, rel=1e-5)
    values = found[metadata.SESSION_START_INFO_TAG].session_start_info.hparams
    shown = {name: getattr(values[name], values[name].WhichOneof("kind")) for name in values}
    assert {name: shown[name] for name in flags} == flags
    # nor what a start was told that computes nothing else: a resumed run would differ from an unbroken one
    assert not {"output_dir", "data_dir", "local_rank", "bin_on", "resume", "dry_run", "hub_private"} & shown.keys()
    assert found[metadata.SESSION_END_INFO_TAG].session_end_info.status == 1  # STATUS_SUCCESS


def test_a_run_ends_with_its_flags_and_metrics(tmp_path: Path) -> None:
    tiny_run(tmp_path, *SIFT, *tensorboard(tmp_path), "--adv_alpha", "2")
    flags = {"adv_train": True, "adv_alpha": 2.0, "adv_norm_level": "post_ln", "train_datasets": "cola, mnli, stsb"}
    assert_has_result(tmp_path, flags)


def test_the_dashboard_has_the_flags_first_in_which_runs_differ(tmp_path: Path) -> None:
    tiny_run(tmp_path / "plain", *ONE_TASK, "--tensorboard", "--tensorboard_logdir", str(tmp_path / "tb" / "plain"))
    flags = (*SIFT, "--seed", "7", "--test_datasets", "mnli_mismatched", "--max_tokens_per_batch", "99")
    tiny_run(
        tmp_path / "sift", *ONE_TASK, *flags, "--tensorboard", "--tensorboard_logdir", str(tmp_path / "tb" / "sift")
    )
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "tb"))
    runs.Reload()
    provider = MultiplexerDataProvider(runs, str(tmp_path / "tb"))
    dashboard, request = Context(TBContext(data_provider=provider)), RequestContext()
    tags = dashboard.hparams_metadata(request, "")
    found = dashboard.experiment_from_metadata(
        request, "", True, tags, provider.list_hyperparameters(request, experiment_ids=[""], limit=0)
    )
    differing = [info.name for info in found.hparam_infos if info.differs]
    assert {"adv_train", "adv_norm_level", "seed", "test_datasets"} <= set(differing)
    assert [info.name for info in found.hparam_infos][: len(differing)] == differing
    assert "max_tokens_per_batch" in {info.name for info in found.hparam_infos}  # one run has none
    metrics = {info.name.tag for info in found.metric_infos}
    assert {"best/mnli_matched_dev/ACC", "best/mnli_mismatched_dev/ACC", "best/epoch"} <= metrics


def test_a_stopped_run_has_no_result_until_it_went_on(tmp_path: Path) -> None:
    flags = (*ONE_TASK, "--epochs", "2", *tensorboard(tmp_path))
    stopped = Trainer(tiny_config(tmp_path, *flags))
    stop_at(stopped, 1, signal.SIGTERM)
    with pytest.raises(Stopped):
        stopped.run()
    assert hparams_of(tmp_path) == {}
    tiny_run(tmp_path, *flags, "--resume", "--model_ckpt", str(tmp_path / "model_0_1.pt"))
    assert_has_result(tmp_path, {"epochs": 2.0, "adv_train": False})
