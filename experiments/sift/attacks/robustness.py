"""Measures the robustness of a trained classifier with both attacks, as a study's `robustness` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from data_utils.errors import DataError, UserError, nearest
from data_utils.prepro import Tokenization, TokenizerSpec
from data_utils.readers import read_canonical_tsv
from data_utils.task_def import DataFormat, TaskType
from experiments.sift.attacks.characters import attack_texts
from experiments.sift.attacks.pgd import pgd
from mt_dnn.batcher import Collater, Example, SingleTaskDataset
from mt_dnn.checkpoints.build import restore_network
from mt_dnn.configuration.config import Config
from mt_dnn.data.dataset import example_of
from mt_dnn.data.run_data import check_fits_encoder
from mt_dnn.data.sampler import batches_by_length
from mt_dnn.model import MTDNNModel
from mt_dnn.perturbation.injection import LEVELS, UnsupportedLevelError
from tasks import Task

SEED = 0  # of both attacks: the same starts and edits for every model
SHOWN = 5  # changed texts in a result


def _check_rising(radii: tuple[float, ...]) -> tuple[float, ...]:
    if any(second <= first for first, second in zip((0.0, *radii), radii, strict=False)):
        raise ValueError("not above 0 and rising")
    return radii


def _check_levels(levels: tuple[str, ...]) -> tuple[str, ...]:
    if not set(levels) <= set(LEVELS) or len(set(levels)) < len(levels):
        raise ValueError("no level, or one twice")
    return levels


Count = Annotated[StrictInt, Field(ge=1)]
Radius = Annotated[float, Field(allow_inf_nan=False)]


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PgdSpec(Spec):
    """The arguments of `pgd`, and how many examples of each test set are attacked."""

    levels: Annotated[tuple[StrictStr, ...], Field(min_length=1), AfterValidator(_check_levels)] = ("pre_ln", "post_ln")
    radii: Annotated[tuple[Radius, ...], Field(min_length=1), AfterValidator(_check_rising)]
    steps: Count = 5
    restarts: Count = 1
    examples: Count


class CharacterSpec(Spec):
    """How many examples of each test set are attacked, and how often each text may be scored."""

    examples: Count
    queries: Count


class RobustnessSpec(Spec):
    """A study's `robustness`: the attacks to run, and `tests`, names of test sets."""

    tests: tuple[StrictStr, ...] = ()
    pgd: PgdSpec | None = None
    characters: CharacterSpec | None = None


MODELS: dict[str, type[Spec]] = {"": RobustnessSpec, "pgd": PgdSpec, "characters": CharacterSpec}
ACCEPTED = {
    "levels": f"a list of {', '.join(LEVELS)}, each at most once",
    "radii": "a list of numbers above 0 that rise",
    "tests": "a list of names",
    "": f"a mapping of the keys {', '.join(RobustnessSpec.model_fields)}",
    "pgd": f"a mapping of the keys {', '.join(PgdSpec.model_fields)}",
    "characters": f"a mapping of the keys {', '.join(CharacterSpec.model_fields)}",
}


def parse_spec(spec: Any) -> RobustnessSpec:
    """A study's `robustness` with defaults.

    Raises:
        UserError: the first mistake in one line: key, what was found, what is accepted.
    """
    try:
        return RobustnessSpec.model_validate(spec)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
    path = [part for part in mistake["loc"] if isinstance(part, str)]
    key = path[-1] if path else ""
    found, accepted = f"found {mistake['input']!r}", ACCEPTED.get(key, "a whole number from 1")
    if mistake["type"] == "missing":
        found = "missing"
    elif mistake["type"] == "extra_forbidden":
        keys = MODELS[".".join(path[:-1])].model_fields
        found, accepted = f"found an unknown key{nearest(key, keys)}", ", ".join(keys)
    raise UserError(f"{': '.join(['robustness', *path])}: {found}, accepted: {accepted}")


def evenly_spread(count: int, wanted: int) -> np.ndarray:
    """Indices of `wanted` of `count` examples, evenly spaced and rising; all indices if `wanted` is larger.

    They depend only on these two numbers, so that all runs of a study test and attack the same examples.
    """
    return np.arange(min(count, wanted)) * count // min(count, wanted)


def measure_robustness(
    checkpoint: Path, tests: Sequence[Path], spec: Mapping[str, Any], encoder: str, task_id: int = 0
) -> dict[str, Any]:
    """Attack a trained model.

    Args:
        checkpoint: of `train.py`.
        tests: token files with labels; `characters` reads the texts in `../NAME.tsv`, from which they were made.
        spec: a study's `robustness`, see `RobustnessSpec`.
        encoder: whose tokenizer made the token files: hub name, local folder or `embedded-minilm`.
        task_id: the number of the task's head in the checkpoint.

    Returns:
        `robustness` of a run's file, by attack and test (the file's name without `.json`):
        `pgd`: by level, `radii`, 0 first, and `correct`, a list of 0 and 1 for each radius;
        `characters`: `clean` and `attacked`, 0 or 1 for each example (right before and after), `queries`, how often its
        text was scored, and `examples`, the first texts whose class the attack changed, before and after.

    Raises:
        UserError: a mistake in `spec`, or a task or file that cannot be used.
    """
    parsed = parse_spec(spec)
    network, flat = restore_network(str(checkpoint))
    task_def = flat["task_def_list"][task_id]
    if task_def.task_type != TaskType.Classification:
        raise UserError(f"robustness: the task is {task_def.task_type.name}, accepted: Classification")
    datasets = [SingleTaskDataset(path, False, task_id, task_def) for path in tests]
    for dataset in datasets:
        check_fits_encoder(dataset, network.bert)
        if dataset.labels is None:
            raise DataError("has no labels; an attack needs them", dataset.path)
    model = MTDNNModel(Config.from_flags({}), flat["task_def_list"], network=network)
    collater = Collater(getattr(network.bert.config, "pad_token_id", None) or 0)
    found: dict[str, Any] = {}
    if parsed.pgd is not None:
        found["pgd"] = {dataset.name: _measure_pgd(model, dataset, collater, parsed.pgd) for dataset in datasets}
    if parsed.characters is not None:
        tokenize = Tokenize(encoder, datasets[0].task, task_id)
        found["characters"] = {
            dataset.name: _measure_characters(model, dataset, collater, tokenize, parsed.characters)
            for dataset in datasets
        }
    return found


def _measure_pgd(model: MTDNNModel, dataset: SingleTaskDataset, collater: Collater, spec: PgdSpec) -> dict[str, Any]:
    examples = [dataset[index] for index in evenly_spread(len(dataset), spec.examples)]
    options = {"steps": spec.steps, "restarts": spec.restarts, "seed": SEED}
    found = {}
    for level in spec.levels:
        try:
            robust = pgd(model.network, examples, collater, level, spec.radii, **options)
        except UnsupportedLevelError as error:
            raise UserError(f"robustness: pgd: levels: {error}") from error
        found[level] = {"radii": [0.0, *spec.radii], "correct": [row.astype(int).tolist() for row in robust]}
    return found


def _measure_characters(
    model: MTDNNModel, dataset: SingleTaskDataset, collater: Collater, tokenize: Tokenize, spec: CharacterSpec
) -> dict[str, Any]:
    chosen = evenly_spread(len(dataset), spec.examples)
    texts = _texts(dataset, tokenize, chosen)

    def probabilities(changed: list[str]) -> np.ndarray:
        examples = tokenize(changed)
        batches = batches_by_length(np.array([len(example["token_id"]) for example in examples]))
        scores = [model.predict(collater([examples[index] for index in batch]))[0] for batch in batches]
        return np.concatenate(scores)[np.concatenate(batches).argsort()]

    assert dataset.labels is not None
    attacked = attack_texts(texts, dataset.labels[chosen].tolist(), probabilities, queries=spec.queries, seed=SEED)
    pairs = zip(texts, attacked, strict=True)
    return {
        "clean": [int(found.clean) for found in attacked],
        "attacked": [int(found.correct) for found in attacked],
        "queries": [found.queries for found in attacked],
        "examples": [[text, found.text] for text, found in pairs if found.clean and not found.correct][:SHOWN],
    }


def _texts(dataset: SingleTaskDataset, tokenize: Tokenize, chosen: np.ndarray) -> list[str]:
    """The texts of the chosen examples, read from the canonical TSV."""
    path = dataset.path.parent.parent / f"{dataset.path.stem}.tsv"
    if dataset.task_def.data_type != DataFormat.PremiseOnly:
        found = dataset.task_def.data_type.name
        raise UserError(f"robustness: characters: the task's data_format is {found}, accepted: PremiseOnly")
    lines = list(read_canonical_tsv(path, DataFormat.PremiseOnly))
    if len(lines) != len(dataset):
        raise DataError(f"holds {len(lines)} examples, {dataset.path} {len(dataset)}: make the token file anew", path)
    texts = [lines[index]["premise"] for index in chosen]
    for index, example in zip(chosen, tokenize(texts), strict=True):
        if not np.array_equal(example["token_id"], dataset[index]["token_id"]):
            message = f"the text's tokens are not those in {dataset.path}: make that anew, with {tokenize.encoder}"
            raise DataError(message, path, int(index) + 1)
    return texts


class Tokenize:
    """Tokenizes texts, as `prepro_std.py` does by default, to examples without labels.

    Args:
        encoder: whose tokenizer is used.
        task: of the examples.
        task_id: the head that will score them.
    """

    def __init__(self, encoder: str, task: Task, task_id: int):
        self.encoder = encoder
        self.task = task
        self.task_id = task_id
        self._text = Tokenization(TokenizerSpec(encoder))

    def __call__(self, texts: Sequence[str]) -> list[Example]:
        return [self._example(str(number), encoded) for number, encoded in enumerate(self._text.encode(texts))]

    def _example(self, uid: str, encoded: Mapping[str, list[int]]) -> Example:
        tokens, types = np.array(encoded["token_id"]), np.array(encoded["type_id"])
        return example_of(uid, tokens, types, self.task, self.task_id)
