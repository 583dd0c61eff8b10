"""The configuration of a run: one frozen dataclass with four groups, built from the flags of `train.py`.

The flags themselves are in `flag_groups.py` and, those of the noise, in `adversarial_config.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_utils.errors import FlagError
from data_utils.pretrained import folder_name
from data_utils.task_def import EncoderModelType
from mt_dnn.configuration.adversarial_config import (
    AdversarialConfig,
    adversarial_hints,
    adversarial_without_effect,
    translate_numbers,
)
from mt_dnn.configuration.config_file import ConfigFile, config_text
from mt_dnn.configuration.flag_groups import CANONICAL_DATA, DataConfig, ModelConfig, TrainingConfig
from mt_dnn.configuration.flags import FlagParser, add_flags, build, flags_of, plain_text
from mt_dnn.configuration.help_groups import FIRST, help_groups
from mt_dnn.perturbation.levels import LEVELS, has_layers

RESUME_FLAGS = ("resume", "model_ckpt", "dry_run")  # belong to one start, not to the run
RUN_CONFIG_FILE = "config.yml"  # in the output folder: all flags of the run, for --config
UPLOAD_FLAGS = ("push_to_hub", "hub_private")  # a repeated run must not replace a model on the Hub by accident

CONFIG_HELP = (
    "read flags from a YAML file, a line NAME: VALUE each, such as the config.yml that every run writes; a flag on the "
    "command line wins over the file, and an empty one (--save_hf '') removes the file's"
)

GROUPS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "adversarial": AdversarialConfig,
}


@dataclass(frozen=True)
class Config:
    """All settings of a run.

    Attributes:
        data, model, training, adversarial: the groups; a field's name is its flag's.
        notices: a line for each flag that the user gave and that has no effect.
        given: the flags that the user gave, by name; those of a file that are at their default are left out.
        stated: names of all flags that the user gave.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    notices: tuple[str, ...] = field(default=(), compare=False)
    given: Mapping[str, Any] = field(default_factory=dict, compare=False)
    stated: Set[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        if self.data.do_padding and self.training.max_tokens_per_batch:
            raise FlagError(
                "--do_padding and --max_tokens_per_batch: found both, accepted: one of them; where every example is "
                "padded to --max_seq_len, --batch_size bounds the tokens"
            )
        adversarial = self.adversarial
        if self.training.compile and adversarial.adv_train and has_layers(adversarial.adv_norm_level):
            raise FlagError(
                f"--compile: compiled layers take no noise at --adv_norm_level {adversarial.adv_norm_level}; accepted: "
                f"{', '.join(LEVELS)}, or leave --compile out"
            )

    @property
    def encoder(self) -> str:
        """The encoder's name: a hub name, a local folder, `embedded-minilm` or an MT-DNN checkpoint."""
        return self.model.init_checkpoint or self.model.bert_model_type

    @property
    def tokenizer(self) -> str:
        """The name of the tokenizer whose output the encoder was trained on."""
        return self.data.tokenizer or self._named_encoder

    @property
    def _named_encoder(self) -> str:
        """The encoder's name; for a checkpoint file, whose name says nothing, `--bert_model_type`."""
        is_checkpoint = self.encoder.endswith(".pt") or Path(self.encoder).is_file()
        return self.model.bert_model_type if is_checkpoint else self.encoder

    @property
    def data_dir(self) -> str:
        """The folder of the token files: `--data_dir`, or where `prepro_std.py --model` of the same encoder writes."""
        return self.data.data_dir or str(Path(CANONICAL_DATA) / folder_name(self._named_encoder))

    @classmethod
    def from_flags(cls, given: Mapping[str, Any]) -> Config:
        """The configuration with the flags in `given` (name to value) set and all others at their defaults.

        Raises:
            FlagError: an unknown name, a value out of range, or values that contradict each other.
        """
        unknown = [name for name in given if not any(name in flags_of(group) for group in GROUPS.values())]
        if unknown:
            raise FlagError(f"unknown flag --{unknown[0]}; --help lists all")
        values = translate_numbers(given)
        config = cls(**{name: build(group, values) for name, group in GROUPS.items()})
        return replace(config, notices=tuple(_notices(given, config)), given=dict(given), stated=set(given))

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Config:
        """The configuration in a checkpoint's flat `config`, MT-DNN's included; keys that are no flags are ignored."""
        values = translate_numbers(flat)
        if "adv_norm_level" in flat and "adv_projection" not in flat:
            # MT-DNN's own run: its release had one projection and no flag for it
            values.setdefault("adv_preset", "mtdnn_release")
        return cls(**{name: build(group, values) for name, group in GROUPS.items()})

    def to_flat(self) -> dict[str, Any]:
        """Flag name to plain value (lists for tuples), as a checkpoint's `config` holds them."""
        flat = {name: value for group in GROUPS for name, value in asdict(getattr(self, group)).items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in flat.items()}

    def to_yaml(self) -> str:
        """All flags that have an effect, those of a resume and an upload aside, as `--config` reads them."""
        flat = {
            name: plain_text(value) if isinstance(value, list) else value
            for name, value in self.to_flat().items()
            if name not in (*RESUME_FLAGS, *UPLOAD_FLAGS)
        }
        left_out = without_effect(flat, self)
        return config_text(
            {
                title: {name: flat[name] for name in flags_of(group) if name in flat and name not in left_out}
                for title, group in GROUPS.items()
            }
        )


def parse_args(argv: Sequence[str] | None = None) -> Config:
    """The configuration of a command line; by default of this process's own.

    Raises:
        UserError: a flag is unknown, a value is not accepted, flags contradict each other, or the file of `--config`
            cannot be read.
    """
    parser = FlagParser(
        prog="train.py",
        usage="%(prog)s [flags]",
        description="Fine-tune a language model on one or more tasks; with --adv_train, under adversarial noise.",
        add_help=False,
    )
    for title, flags in help_groups(GROUPS.values()).items():
        section = parser.add_argument_group(title)
        add_flags(section, flags)
        if title == FIRST:
            section.add_argument("--config", metavar="FILE.yml", help=CONFIG_HELP)
            section.add_argument("-h", "--help", action="help", help="show all flags")
    given = parser.given(argv)
    path = given.pop("config", None)
    if path is None:
        return Config.from_flags(given)
    file = ConfigFile(path, GROUPS.values())
    config = file.combined_with(given, Config.from_flags)
    return replace(config, stated=file.names | config.stated)


def without_effect(given: Iterable[str], config: Config) -> dict[str, str]:
    """Of the flags named in `given` those that have no effect in this configuration, each with the reason."""
    flags = {name: spec for group in GROUPS.values() for name, spec in flags_of(group).items()}
    found = {name: flags[name].notice for name in given if flags[name].notice}
    if "encoder_type" in given and config.model.encoder_type != EncoderModelType.SAN:
        found["encoder_type"] = "no use any more but for 4: the kind is read from the encoder's configuration"
    if config.training.model_ckpt is not None and not config.training.resume:
        found["model_ckpt"] = "no effect without --resume"
    if "batch_size" in given and config.training.max_tokens_per_batch:
        found["batch_size"] = "no effect with --max_tokens_per_batch, which bounds a batch by its tokens"
    if config.training.save_hf is None and "do_lower_case" in given:
        found["do_lower_case"] = "no effect without --save_hf; prepro_std.py tokenizes the text"
    if config.training.push_to_hub is None and "hub_private" in given:
        found["hub_private"] = "no effect without --push_to_hub"
    return found | adversarial_without_effect(given, config.adversarial)


def _notices(given: Mapping[str, Any], config: Config) -> list[str]:
    """A line for each reason why given flags have no effect, in the order given, and for what else to know of them."""
    of_reason: dict[str, list[str]] = {}
    for name, reason in without_effect(given, config).items():
        of_reason.setdefault(reason, []).append(f"--{name}")
    lines = [f"{', '.join(names)}: {reason}" for reason, names in of_reason.items()]
    return lines + adversarial_hints(given, config.adversarial)
