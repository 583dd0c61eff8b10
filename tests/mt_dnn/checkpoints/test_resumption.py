"""What a checkpoint keeps for a resume, state by state."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_utils.errors import DataError
from mt_dnn.checkpoints.checkpoint import deltas_of, load_checkpoint, save_checkpoint
from mt_dnn.configuration.config import parse_args
from mt_dnn.training.trainer import Trainer
from tests.mt_dnn.runs import RUN, SIFT, assert_same, parameters, tiny_config, tiny_run

FLAGS = (*SIFT, "--adv_free", "--bregman_mu", "1", "--epochs", "3")


class Scaler:
    """In the place of torch's scaler, which needs a GPU."""

    def __init__(self, scale: float):
        self.scale = scale

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A run in the middle of its second epoch, and its checkpoint."""
    folder = tmp_path_factory.mktemp("stopped")
    data = Path(shutil.copytree(RUN / "tinydata", folder / "data", ignore=shutil.ignore_patterns(".*")))
    trainer = Trainer(tiny_config(folder / "run", *FLAGS, "--data_dir", str(data)))
    trainer.stop.received = None
    step = trainer.model._step

    def stopping(report: Any) -> None:
        step(report)
        if trainer.model.updates == 13:
            trainer.stop.received = 15

    trainer.model._step = stopping  # type: ignore[method-assign]
    with pytest.raises(Exception, match="stopped by SIGTERM after update 13"):
        trainer.run()
    return trainer, folder / "run" / "model_1_13.pt"


@pytest.fixture
def resumed(stopped: tuple[Trainer, Path], tmp_path: Path) -> Trainer:
    """A new run that has taken over the checkpoint and goes no further; its own state was another before."""
    _, checkpoint = stopped
    data = checkpoint.parents[1] / "data"
    flags = (*FLAGS, "--data_dir", str(data), "--resume", "--model_ckpt", str(checkpoint))
    trainer = Trainer(tiny_config(tmp_path, *flags))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    trainer.position = trainer.checkpoints.resume()  # type: ignore[attr-defined]
    return trainer


def test_parameters_optimizer_schedule_and_teacher_are_those_of_the_run(
    stopped: tuple[Trainer, Path], resumed: Trainer
) -> None:
    before = stopped[0].model
    for name, tensor in before.network.state_dict().items():
        assert torch.equal(resumed.model.network.state_dict()[name], tensor), name
    states = [model.optimizer.state_dict()["state"] for model in (before, resumed.model)]
    assert states[0].keys() == states[1].keys() and len(states[0]) > 10
    for number, moments in states[0].items():
        for name, value in moments.items():
            assert torch.equal(torch.as_tensor(states[1][number][name]), torch.as_tensor(value)), (number, name)
    assert resumed.model.schedule.get_last_lr() == before.schedule.get_last_lr()
    assert resumed.model.updates == 13 and before.bregman is not None and resumed.model.bregman is not None
    teachers = [model.bregman.state_dict() for model in (before, resumed.model) if model.bregman is not None]
    assert all(torch.equal(teachers[1][name], tensor) for name, tensor in teachers[0].items())
    assert int(teachers[1]["n_averaged"]) == 14
    student = before.network.state_dict()
    assert any(not torch.equal(teachers[0][f"module.{name}"], tensor) for name, tensor in student.items())


def test_kept_noise_and_the_place_in_the_data_are_those_of_the_run(
    stopped: tuple[Trainer, Path], resumed: Trainer
) -> None:
    trainer, checkpoint = stopped
    before, after = trainer.checkpoints.state.delta_cache, resumed.checkpoints.state.delta_cache
    assert before is not None and after is not None
    assert np.array_equal(before._content, after._content)
    assert before._seen.any() and np.abs(before._values).max() > 0
    assert deltas_of(checkpoint).is_file()
    epoch, batches = resumed.position  # type: ignore[attr-defined]
    assert (epoch, batches) == (1, 13 - len(trainer.sampler))
    assert [entry["epoch"] for entry in resumed.result.history] == [0]


def test_every_random_generator_goes_on_where_it_stood(stopped: tuple[Trainer, Path], resumed: Trainer) -> None:
    (state,) = load_checkpoint(stopped[1])["progress"]["random_states"]
    assert random.getstate() == state["python"]
    assert np.random.get_state(legacy=True)[1].tolist() == state["numpy"][1]
    assert torch.equal(torch.get_rng_state(), state["torch"])


def test_the_loss_scaler_goes_along(stopped: tuple[Trainer, Path], resumed: Trainer, tmp_path: Path) -> None:
    before, after = Scaler(1024.0), Scaler(1.0)
    trainer, _ = stopped
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.model.accelerator, "scaler", before)
        trainer.model.save(str(tmp_path / "model_9.pt"))
        patch.setattr(resumed.model.accelerator, "scaler", after)
        resumed.model.load(str(tmp_path / "model_9.pt"))
    assert after.scale == 1024.0


def test_a_finished_run_trains_on_with_the_schedule_over_the_new_length(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", "--epochs", "2")
    first = json.loads((tmp_path / "run" / "results.json").read_text())
    result = tiny_run(tmp_path / "run", "--epochs", "4", "--resume")
    log = (tmp_path / "run" / "log.txt").read_text().rpartition("resumed from")[2]
    # 36 updates, 4 of them warmup; after 18 the linear schedule stands at (36 - 18) / (36 - 4).
    assert "--epochs 4 instead of 2: the learning-rate schedule now spans all 36 updates, of which 18 are done" in log
    assert "and goes on at 0.000563;" in log
    assert [entry["epoch"] for entry in result.history] == [0, 1, 2, 3] and result.history[:2] == first["history"]
    updates = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = {line["update"]: line["lr"] for line in updates if line["kind"] == "update"}
    assert rates[19] == pytest.approx(1e-3 * (36 - 19) / 32) and rates[36] == 0
    assert result.seconds > first["seconds"] > 0
    longer = tiny_run(tmp_path / "longer", "--epochs", "4")
    assert [entry["epoch"] for entry in longer.history] == [0, 1, 2, 3]
    model = load_checkpoint(tmp_path / "run" / "model_3.pt")["progress"]
    assert model["updates"] == 36


def test_another_number_of_epochs_is_taken_where_it_is_given_and_leaves_what_is_trained(tmp_path: Path) -> None:
    tiny_run(tmp_path, "--epochs", "2")
    with pytest.raises(DataError, match="has trained in 2 epochs, found --epochs 1, accepted: at least 2"):
        tiny_run(tmp_path, "--epochs", "1", "--resume")
    text = (tmp_path / "config.yml").read_text()
    for epochs, more in ((5, ()), (2, ("--epochs", "3"))):
        (tmp_path / "more.yml").write_text(text.replace("epochs: 2", f"epochs: {epochs}"))
        config = parse_args(["--config", str(tmp_path / "more.yml"), "--resume", *more])
        assert Trainer(config).checkpoints.resume() == (2, 0)  # of a file, 5 is a number that was given
    (tmp_path / "more.yml").write_text(text.replace("epochs: 2", ""))
    with pytest.raises(
        DataError, match="with --epochs 2, and here it is left out, which means 5; accepted: --epochs 2"
    ):
        Trainer(parse_args(["--config", str(tmp_path / "more.yml"), "--resume"])).checkpoints.resume()


def test_a_finished_run_says_how_to_train_on(tmp_path: Path) -> None:
    tiny_run(tmp_path, "--epochs", "1")
    before = parameters(tmp_path / "model_0.pt")
    tiny_run(tmp_path, "--epochs", "1", "--resume")
    log = (tmp_path / "log.txt").read_text()
    assert "all 1 epochs are trained; --resume --epochs N with a larger N trains on" in log
    assert_same(before, parameters(tmp_path / "model_0.pt"))


def test_the_minutes_of_a_resumed_run_are_those_of_the_whole_run(tmp_path: Path) -> None:
    tiny_run(tmp_path, "--epochs", "1")
    content = load_checkpoint(tmp_path / "model_0.pt")
    content["progress"]["seconds"] = 600.0
    save_checkpoint(tmp_path / "model_0.pt", content)
    assert 600 < tiny_run(tmp_path, "--epochs", "2", "--resume").seconds < 660
    assert re.search(r"best epoch: \d of 2 \(.*\); 1\d\.\d minutes", (tmp_path / "log.txt").read_text())
