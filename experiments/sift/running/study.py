"""A study's definition: data, settings, methods and seeds, read from a YAML file in `studies/`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_utils.errors import DataError, FlagError, UserError, nearest
from data_utils.pretrained import EMBEDDED_NAME, folder_name
from data_utils.storage.yaml_file import compose_yaml, construct_yaml
from experiments.sift.attacks.robustness import parse_spec

Flags = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+-][A-Za-z0-9_.+-]*$")]  # is used in file names
Count = Annotated[int, Field(ge=1)]
TRAINED = "trained"  # the first stage of every run; further stages continue from its model


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(_Part):
    """Further training of a setting's model: a dataset, test files, flags that differ from the study's."""

    train: Name
    tests: list[Name] = Field(min_length=1)
    flags: Flags = {}


class Setting(_Part):
    """What a model is trained and tested on.

    train: a dataset with `_train` and `_dev` files; tests: names of token files without `.json`; stages: further
    training, each from the model of `train`; seeds: at most so many, None: as many as the study has.
    """

    train: Name
    tests: list[Name] = Field(min_length=1)
    stages: dict[str, Stage] = {}
    seeds: Count | None = None

    @property
    def all_stages(self) -> list[str]:
        return [TRAINED, *self.stages]

    def tests_of(self, stage: str) -> list[str]:
        return self.tests if stage == TRAINED else self.stages[stage].tests

    @property
    def all_tests(self) -> list[str]:
        """The tests of all stages, each once."""
        return list(dict.fromkeys(test for stage in self.all_stages for test in self.tests_of(stage)))

    def domain_of(self, test: str) -> str:
        """`in domain`, `out of domain` or `both domains`, by a test set's name; the training set's domain is in."""
        if test == f"{self.train}_all_test":
            return "both domains"
        return "in domain" if test in (f"{self.train}_test", f"{self.train}_in_test") else "out of domain"


class Comparison(_Part):
    """The planned comparison of methods, by the mean of the study's metric over these tests."""

    methods: list[Name] = Field(min_length=2)
    setting: Name
    stage: str = TRAINED
    tests: list[Name] = Field(min_length=1)


class Seeds(_Part):
    """Numbers of seeds: for the methods compared and the others; first: the first seed, the rest count up from it."""

    compared: Count
    others: Count
    first: int = 2018


class Tuning(_Part):
    """Trials on the development set of the comparison's setting, equally many for each method.

    grid: the trials of each method, each a set of flags; train_fraction: share of the training set; flags: those that
    differ from the study's.
    """

    grid: dict[Name, list[Flags]]
    seeds: Count = 1
    first_seed: int = 1000
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    flags: Flags = {}

    @model_validator(mode="after")
    def _equal_budget(self) -> Tuning:
        counts = {method: len(trials) for method, trials in self.grid.items()}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{method} {count}" for method, count in counts.items())
            raise ValueError(f"trials differ in number ({found}); accepted: as many for each method")
        fixed = sorted({name for trials in self.grid.values() for flags in trials for name in flags} & set(self.flags))
        if fixed:
            raise ValueError(f"flags: found {', '.join(fixed)}, which trials vary; accepted: flags that none varies")
        return self


class Robustness(_Part):
    """Attacks on the models of the comparison's setting, for the first `seeds` seeds.

    measured: the attacks and their `tests`, see `RobustnessSpec`.
    """

    seeds: Annotated[int, Field(ge=0)] = 0
    measured: dict[str, Any] = {}

    @model_validator(mode="after")
    def _measurable(self) -> Robustness:
        if self.seeds:
            try:
                parse_spec(self.measured)
            except UserError as error:
                raise ValueError(str(error)) from error
        return self


class Recipe(_Part):
    """Settings for another encoder: flags that differ from the study's, and published flags of methods, which replace
    the study's. Nothing is tuned."""

    flags: Flags = {}
    methods: dict[Name, Flags] = {}


class Study(_Part):
    """A study as the YAML gives it; `experiments/sift/studies/` has examples.

    data: preparations of `study_data.py`; metric: of tuning and comparison; test_examples: at most so many examples of
    each test set, spread evenly over the file; published: keys of `published_results.yml`.
    """

    study: Name
    question: str
    encoder: str = EMBEDDED_NAME
    task_def: str
    task: Name
    metric: Literal["ACC", "MCC", "Pearson"]
    data: list[Name]
    comparison: Comparison
    settings: dict[Name, Setting]
    test_examples: Count | None = None
    flags: Flags
    methods: dict[Name, Flags]
    seeds: Seeds
    tuning: Tuning | None = None
    robustness: Robustness = Robustness()
    recipes: dict[str, Recipe] = {}
    published: list[str] = []

    @model_validator(mode="after")
    def _names_fit(self) -> Study:
        _check_names("comparison, setting", [self.comparison.setting], self.settings)
        setting = self.settings[self.comparison.setting]
        _check_names("comparison, stage", [self.comparison.stage], setting.all_stages)
        _check_names("comparison, tests", self.comparison.tests, setting.tests_of(self.comparison.stage))
        _check_names("comparison, methods", self.comparison.methods, self.methods)
        if self.robustness.seeds:
            _check_names("robustness, tests", self.robustness.measured.get("tests", []), setting.tests)
        if self.tuning is not None:
            _check_names("tuning, grid", self.tuning.grid, self.methods)
            untuned = [method for method in self.methods if method not in self.tuning.grid]
            if untuned:
                raise ValueError(
                    f"tuning, grid: {', '.join(untuned)} missing; accepted: as many trials for each method"
                )
        for recipe in self.recipes.values():
            _check_names("recipes, methods", recipe.methods, self.methods)
        further = [stage.train for setting in self.settings.values() for stage in setting.stages.values()]
        for name in [*further, *(setting.train for setting in self.settings.values())]:
            if name.endswith("_test"):
                raise ValueError(f"train: found {name!r}, a test set; accepted: a dataset's name without its split")
        return self

    def with_encoder(self, encoder: str) -> Study:
        """The study with another encoder, with the recipe for it if there is one; the copy has no recipes."""
        recipe = self.recipes.get(encoder)
        if recipe is None:
            return self.model_copy(update={"encoder": encoder})
        changes = {
            "encoder": encoder,
            "flags": self.flags | recipe.flags,
            "methods": self.methods | recipe.methods,
            "tuning": None,
            "recipes": {},
        }
        return self.model_copy(update=changes)

    def with_methods(self, names: list[str]) -> Study:
        """The study with some of its methods.

        Raises:
            FlagError: a method that the study does not have, or one of the comparison is missing.
        """
        for name in names:
            if name not in self.methods:
                raise FlagError(
                    f"--methods: found {name!r}, accepted: {', '.join(self.methods)}{nearest(name, self.methods)}"
                )
        missing = [name for name in self.comparison.methods if name not in names]
        if missing:
            raise FlagError(f"--methods: {', '.join(missing)} missing, which the study compares")
        changes: dict[str, Any] = {
            "methods": {name: self.methods[name] for name in names},
            "tuning": self._tuning_of(names),
            "recipes": {},
        }
        return self.model_copy(update=changes)

    def _tuning_of(self, methods: Iterable[str]) -> Tuning | None:
        """The tuning of some methods; None if they have no trials."""
        if self.tuning is None:
            return None
        grid = {method: self.tuning.grid[method] for method in methods if method in self.tuning.grid}
        return self.tuning.model_copy(update={"grid": grid}) if grid else None

    def seeds_of(self, method: str, setting: str) -> range:
        """The seeds of a method in a setting."""
        count = self.seeds.compared if method in self.comparison.methods else self.seeds.others
        most = self.settings[setting].seeds
        return range(self.seeds.first, self.seeds.first + (count if most is None else min(count, most)))

    def is_attacked(self, setting: str, seed: int) -> bool:
        """Whether the runs with this setting and seed are attacked."""
        return setting == self.comparison.setting and seed < self.seeds.first + self.robustness.seeds

    @property
    def all_tests(self) -> list[str]:
        """The tests of all settings, each once."""
        return list(dict.fromkeys(test for setting in self.settings.values() for test in setting.all_tests))

    @property
    def folder(self) -> str:
        """The name of the study's folder of results."""
        return self.study if self.encoder == EMBEDDED_NAME else f"{self.study}-{folder_name(self.encoder)}"


def _check_names(what: str, names: Any, accepted: Any) -> None:
    """Raises ValueError for the first name that is not accepted."""
    for name in names:
        if name not in accepted:
            raise ValueError(f"{what}: found {name!r}, accepted: {', '.join(accepted)}{nearest(name, accepted)}")


def command_line(flags: Mapping[str, Any]) -> list[str]:
    """Flags as the words of a command line of `train.py`."""
    return [
        word
        for name, value in flags.items()
        for word in (f"--{name}", str(value).lower() if isinstance(value, bool) else str(value))
    ]


def read_study(path: Path | str) -> Study:
    """Read a study from its YAML file.

    Raises:
        DataError: the file cannot be read, is no YAML, or is no study; the message names the first mistake.
    """
    node = compose_yaml(path)
    content = None if node is None else construct_yaml(node, path)
    if not isinstance(content, Mapping):
        raise DataError(f"is no study; accepted: a mapping of {', '.join(Study.model_fields)}", path)
    try:
        return Study.model_validate(dict(content))
    except ValidationError as error:
        raise DataError(_first_mistake(error), path) from error


def _first_mistake(error: ValidationError) -> str:
    """The first mistake in one line: its place, what was found, what is accepted."""
    mistake = error.errors(include_url=False)[0]
    kind, place = mistake["type"], ", ".join(map(str, mistake["loc"]))
    if kind == "value_error":
        reason = str(mistake["ctx"]["error"])
        return f"{place}: {reason}" if place else reason
    if kind == "missing":
        return f"{place}: missing"
    if kind == "literal_error":
        accepted = mistake["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"{place}: found {mistake['input']!r}, accepted: {accepted}"
    if kind == "extra_forbidden" and len(mistake["loc"]) == 1:
        known = Study.model_fields
        return f"{place}: found an unknown key{nearest(place, known)}, accepted: {', '.join(known)}"
    return f"{place}: found {mistake['input']!r} ({mistake['msg']})"
