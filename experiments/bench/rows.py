"""What the bench compares: a row is a way to do one training step, and what a step costs in forwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.bench import others
from experiments.bench.others import Contest, Step
from experiments.sift.running.runs import FIRST_SEED, Method, configure
from module.linear import choose_linears
from mt_dnn.batcher import Batch
from mt_dnn.configuration.config import Config
from mt_dnn.model import MTDNNModel
from mt_dnn.perturbation.injection import NoiseInjection
from mt_dnn.training.delta_cache import DeltaCache

# All rows train one network, with steps too small to change its weights: every step has the same weights.
STILL = {"learning_rate": 1e-9, "scheduler_type": 2, "warmup": 0}


class Row(NamedTuple):
    """A way to train.

    name: in tables and in `--rows`; forwards: the arithmetic of a step, a forward of the encoder being 1, a backward to
    all parameters 2, one to the activations alone 1 (attention's own products, a small part, take 2 there too); build:
    the step over a network; grouped: over batches of similar length, or over random ones.
    """

    name: str
    forwards: float
    build: Callable[[Contest], Step]
    grouped: bool = True


def still_config(contest: Contest, **flags: object) -> Config:
    """The configuration of a run of `experiments.sift` but for the learning rate, with `flags` set."""
    options = {"encoder": contest.encoder, "data_dir": Path("data"), "epochs": 1}
    return configure(Method("", {**STILL, **flags, **contest.flags}), FIRST_SEED, **options)  # type: ignore[arg-type]


def ours(name: str, forwards: float, **flags: object) -> Row:
    """A row of this project: the update of a run with these flags of `train.py`."""
    if "adv_opt" in flags:
        flags = {"adv_train": "true", **flags}

    def build(contest: Contest) -> Step:
        config = still_config(contest, **flags)
        model = MTDNNModel(config, [contest.task_def], network=contest.network)
        if config.adversarial.adv_free:
            hidden = NoiseInjection(contest.network.bert, config.adversarial.adv_norm_level).size
            with tempfile.NamedTemporaryFile() as file:  # a map outlives its file's name
                model.use_delta_cache(DeltaCache(Path(file.name), contest.lengths, hidden))
        return _as_owned(contest, config.training.cpu_linear, model.word_gradient is not None, model.update)

    return Row(name, forwards, build)


def _as_owned(contest: Contest, engine: str, sparse: bool, step: Step) -> Step:
    """The step with linear layers and the word table's gradient as its owner computes them, for all rows share the
    network."""
    words: Any = contest.network.bert.get_input_embeddings()

    def run(batch: Batch) -> object:
        choose_linears(contest.network, engine)
        words.sparse, words.weight.grad = sparse, None
        return step(batch)

    return run


def evaluation(contest: Contest) -> Step:
    """A batch's scores and predictions, as evaluation and prediction compute them."""
    config = still_config(contest)
    model = MTDNNModel(config, [contest.task_def], network=contest.network)
    return _as_owned(contest, config.training.cpu_linear, model.word_gradient is not None, model.predict)


def other(name: str, forwards: float, build: Callable[[Contest, Config], Step], grouped: bool = True) -> Row:
    """A row of another project, or of a stand-in for it."""

    def build_plain(contest: Contest) -> Step:
        return _as_owned(contest, "mkl", False, build(contest, still_config(contest)))

    return Row(name, forwards, build_plain, grouped)


PLAIN = ours("plain", 3)
ROWS = {
    row.name: row
    for row in (
        PLAIN,
        ours("plain-mkl", 3, cpu_linear="mkl"),
        ours("plain-onednn", 3, cpu_linear="onednn"),
        ours("smart", 8, adv_opt="smart", adv_norm_level="pre_ln"),
        ours("sift", 8, adv_opt="smart", adv_norm_level="post_ln"),
        ours("smart-deberta", 8, adv_opt="smart", adv_norm_level="deberta"),
        ours("alum", 8, adv_opt="alum", adv_norm_level="post_ln", adv_start_ratio=0),
        ours("vat", 8, adv_opt="vat", adv_norm_level="post_ln"),
        ours("at", 8, adv_opt="at", adv_norm_level="post_ln"),
        ours("sift-free", 6, adv_opt="smart", adv_norm_level="post_ln", adv_free="true"),
        ours("sift-every-2", 5.5, adv_opt="smart", adv_norm_level="post_ln", adv_every=2),
        ours("random", 6, adv_opt="random", adv_norm_level="post_ln"),
        ours("r3f", 6, adv_opt="r3f", adv_norm_level="post_ln"),
        ours("freelb", 7, adv_opt="freelb", adv_norm_level="post_ln"),
        Row("evaluation", 1, evaluation),
        other("trainer", 3, others.trainer_step),
        other("smart-pytorch", 8, others.smart_pytorch_step),
        other("standin", 3, others.standin_step, grouped=False),
        other("standin-smart", 8, others.standin_smart_step, grouped=False),
    )
}
# Pairs (ours, theirs) that get a ratio of their own if both are measured.
COMPARED = (
    ("plain-onednn", "plain-mkl"),
    ("plain", "trainer"),
    ("smart", "smart-pytorch"),
    ("plain", "standin"),
    ("smart", "standin-smart"),
    ("sift", "standin-smart"),
)
