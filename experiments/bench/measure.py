"""Measuring: batches that stand for an epoch, alternating times, peak memory, arithmetic, the machine's speed."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from transformers.utils.logging import disable_progress_bar

from data_utils.errors import UserError
from data_utils.task_def import DataFormat, TaskType
from experiments.bench.others import Contest, Step
from experiments.bench.rows import ROWS
from experiments.sift.running.runs import FIRST_SEED
from module.encoder import load_encoder
from mt_dnn.batcher import Batch, Collater, MultiTaskBatchSampler, MultiTaskDataset, SingleTaskDataset
from mt_dnn.configuration.flag_groups import TrainingConfig
from mt_dnn.data.run_data import check_fits_encoder
from mt_dnn.matcher import SANBertNetwork
from tasks.definition import TaskDef

Rounds = list[list[Batch]]

# The type in which matrix products are computed; `tf32` is float32 with its products rounded to TF32 where a GPU can.
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

MEMORY_STEPS = 4
MATRIX_PRODUCTS = 30  # of which the median counts, once a round


class Setting(NamedTuple):
    """What is measured on: `data`, a file of token JSON lines; `encoder`, a name; batches of `batch_size` examples in
    `rounds` rounds of `steps`; `threads` of torch, None for its own choice; `precision`, one of `PRECISIONS`; whether
    the encoder's layers are compiled."""

    data: Path
    encoder: str
    batch_size: int
    rounds: int
    steps: int
    threads: int | None
    precision: str = "float32"
    compile: bool = False


class Memory(NamedTuple):
    """Peak memory of a process in bytes, and how much of it came after model and batches were there."""

    peak: int
    by_steps: int


def prepare(setting: Setting) -> tuple[Contest, dict[bool, Rounds]]:
    """The network, and the batches of all rounds by whether they are grouped by length.

    Raises:
        DataError: data that cannot be read, holds too few examples, or does not fit the encoder.
    """
    disable_progress_bar()
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    torch.set_float32_matmul_precision("high" if setting.precision == "tf32" else "highest")
    torch.manual_seed(FIRST_SEED)
    encoder = load_encoder(setting.encoder, dropout_p=TrainingConfig.bert_dropout_p)
    dataset = SingleTaskDataset(setting.data, True, 0, _classification(n_class=sys.maxsize))
    check_fits_encoder(dataset, encoder)
    assert dataset.labels is not None  # a training file without labels is refused
    task_def = _classification(n_class=max(2, int(dataset.labels.max()) + 1))
    network = SANBertNetwork({"task_def_list": [task_def], "dropout_p": TrainingConfig.dropout_p}, encoder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    collater = Collater(getattr(encoder.config, "pad_token_id", None) or 0)
    batches = {grouped: sample_of_epoch(dataset, collater, setting, grouped, device) for grouped in (True, False)}
    wanted = {"bf16": setting.precision == "bf16", "fp16": setting.precision == "fp16", "compile": setting.compile}
    flags = {name: "true" for name, value in wanted.items() if value}
    return Contest(network.to(device), setting.encoder, task_def, dataset.lengths, flags), batches


def _classification(n_class: int) -> TaskDef:
    entry = {"data_format": DataFormat.PremiseOnly.name, "task_type": TaskType.Classification.name, "n_class": n_class}
    return TaskDef.from_yaml({**entry, "metric_meta": ["ACC"], "loss": "CeCriterion"})


def sample_of_epoch(
    dataset: SingleTaskDataset, collater: Collater, setting: Setting, grouped: bool, device: str = "cpu"
) -> Rounds:
    """Batches that stand for an epoch's: its full batches in the order of their widths, taken at equal distances, and
    dealt out there and back, so that every round has narrow and wide ones, in about equal parts."""
    sampler = MultiTaskBatchSampler(
        [dataset], setting.batch_size, seed=FIRST_SEED, group_by_length=grouped, drop_last=True
    )
    epoch = sorted((examples for _, examples in sampler), key=lambda examples: int(dataset.lengths[examples].max()))
    count = setting.rounds * setting.steps
    chosen = [epoch[(2 * place + 1) * len(epoch) // (2 * count)] for place in range(count)]
    batched = MultiTaskDataset([dataset])
    batches = [collater(batched[0, examples]).to(device) for examples in chosen]
    rounds: Rounds = [[] for _ in range(setting.rounds)]
    for start in range(0, count, 2 * setting.rounds):
        there_and_back = [*rounds, *reversed(rounds)]
        for part, batch in zip(there_and_back, batches[start : start + 2 * setting.rounds], strict=False):
            part.append(batch)
    return rounds


def alternate(
    steps: Mapping[str, Step], batches: Mapping[str, Rounds], tell: Callable[[str], None]
) -> dict[str, list[list[float]]]:
    """Seconds of every step, by row and round.

    In each round every row does its steps; who begins moves on from round to round. The first round is done twice, and
    the first time does not count.

    Args:
        steps: a row's name to its step.
        batches: a row's name to its batches; all have as many rounds.
        tell: gets a line about each round.
    """
    names = list(steps)
    rounds = len(next(iter(batches.values())))
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(-1, rounds):
        turn = (number + 1) % len(names)
        for name in names[turn:] + names[:turn]:
            times = [timed(steps[name], batch) for batch in batches[name][max(number, 0)]]
            if number >= 0:
                seconds[name].append(times)
        tell("warm-up done" if number < 0 else f"round {number + 1} of {rounds} done")
    return seconds


def timed(function: Callable[..., object], *arguments: Any) -> float:
    """Seconds of one call, to the end of what it started on a GPU."""
    start = time.perf_counter()
    function(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def forward_flops(config: Any, examples: int, width: int) -> int:
    """Operations of the matrix products in one forward of an encoder with BERT's layers, a multiply-add being two.

    A layer and token: four projections of `hidden_size`, scores and sums over `width` tokens, and the feed-forward's
    two products.
    """
    hidden, inner = config.hidden_size, _intermediate_size(config)
    per_token = 4 * hidden * hidden + 2 * width * hidden + 2 * hidden * inner
    return 2 * config.num_hidden_layers * examples * width * per_token


def _intermediate_size(config: Any) -> int:
    """The width of the feed-forward; BERT's proportion where the configuration tells none."""
    return getattr(config, "intermediate_size", 4 * config.hidden_size)


def matrix_rate(
    config: Any, tokens: int, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> float:
    """Operations a second of this machine's matrix product, of the size of the feed-forward's first: the median of
    several (tokens, hidden) @ (hidden, intermediate)."""
    return product_rate((tokens, config.hidden_size, _intermediate_size(config)), device, dtype)


def product_rate(sizes: tuple[int, int, int], device: str | torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the product of a (rows, inner) and an (inner, columns) matrix, by `sizes` in this order:
    the median of several."""
    rows, inner, columns = sizes
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(inner, columns, device=device, dtype=dtype)
    seconds = median(timed(torch.mm, left, right) for _ in range(MATRIX_PRODUCTS))
    return 2 * rows * inner * columns / seconds


def peak_memory(setting: Setting, name: str) -> Memory:
    """Peak memory of a process that does steps of this row alone, on the widest of its batches.

    The process is forked from a server that has imported the code and done nothing: a fresh process's counter would
    begin at this one's peak, which exec hands on.

    Raises:
        UserError: the process was ended from outside.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            return pool.submit(_steps_of, setting, name).result()
    except BrokenProcessPool:
        raise UserError(f"{name}: the process that measures memory was ended from outside; is there enough?") from None


def _steps_of(setting: Setting, name: str) -> Memory:
    contest, batches = prepare(setting)
    before = _peak()
    row = ROWS[name]
    step = row.build(contest)
    widest = max((batch for part in batches[row.grouped] for batch in part), key=lambda batch: batch.input_ids.numel())
    for _ in range(MEMORY_STEPS):
        step(widest)
    return Memory(_peak(), _peak() - before)


def _peak() -> int:
    """Peak memory of this process in bytes: the GPU's, where there is one, for its tensors are there."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def real_tokens(batches: Sequence[Sequence[Batch]]) -> float:
    """Mean number of tokens of a batch, padding left out."""
    counts = [int(batch.attention_mask.sum()) for part in batches for batch in part]
    return sum(counts) / len(counts)


def mean_flops(config: Any, batches: Sequence[Sequence[Batch]]) -> float:
    """Mean operations of a forward over these batches, padding included, for it is computed too."""
    counts = [forward_flops(config, *batch.input_ids.shape) for part in batches for batch in part]
    return sum(counts) / len(counts)
