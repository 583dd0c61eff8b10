"""Enumerations of task types, data formats, encoders and criteria, with MT-DNN's names, spelling and numbers."""

import zlib
from enum import IntEnum

FIRST_NEW_TYPE = 1000  # the numbers of MT-DNN's task types are below


class TaskType(IntEnum):
    Classification = 1
    Regression = 2
    Ranking = 3
    SpanClassification = 4
    SpanClassificationYN = 5
    SeqenceLabeling = 6
    MaskLM = 7
    SpanSeqenceLabeling = 8
    SeqenceGeneration = 9
    SeqenceGenerationMRC = 10
    EncSeqenceGeneration = 11
    ClozeChoice = 12

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"no task type has the number {value}; a custom one needs its file in tasks/")


def new_task_type(name: str) -> TaskType:
    """Add a member to `TaskType`, for a task type that MT-DNN does not have.

    Its number is computed from its name, so that every program that reads a checkpoint finds the same one.

    Raises:
        ValueError: the name is no identifier, or is taken.
    """
    if not name.isidentifier() or name in TaskType.__members__:
        raise ValueError(f"{name!r} is no new name of a task type; taken: {', '.join(TaskType.__members__)}")
    member = int.__new__(TaskType, FIRST_NEW_TYPE + zlib.crc32(name.encode()))
    member._name_, member._value_ = name, int(member)
    TaskType._member_map_[name] = TaskType._value2member_map_[int(member)] = member
    TaskType._member_names_.append(name)
    return member


class DataFormat(IntEnum):
    PremiseOnly = 1
    PremiseAndOneHypothesis = 2
    PremiseAndMultiHypothesis = 3
    Seqence = 4
    MLM = 5
    CLUE_CLASSIFICATION = 6
    CLUE_SPAN = 7
    CLUE_SEQ = 8
    CLUE_GEN = 9
    ClozeChoice = 10


class EncoderModelType(IntEnum):
    BERT = 1
    ROBERTA = 2
    XLNET = 3
    SAN = 4
    XLM = 5
    DEBERTA = 6
    ELECTRA = 7
    T5 = 8
    T5G = 9
    MSRT5G = 10
    MSRT5 = 11
    MSRLONGT5G = 12
    MSRLONGT5 = 13


# Encoders that Microsoft has not published: MT-DNN has only their names.
INTERNAL_ENCODERS = tuple(member for member in EncoderModelType if member.name.startswith("MSR"))


class LossCriterion(IntEnum):
    """Criteria by name. MT-DNN's checkpoints know it as `mt_dnn.loss.LossCriterion`."""

    CeCriterion = 0
    MseCriterion = 1
    RankCeCriterion = 2
    SpanCeCriterion = 3
    SeqCeCriterion = 4
    MlmCriterion = 5
    KlCriterion = 6
    SymKlCriterion = 7
    NsKlCriterion = 8
    NsSymKlCriterion = 9
    JSCriterion = 10
    HLCriterion = 11
    BceCriterion = 1000  # this project's; MT-DNN's numbers are below


LossCriterion.__module__ = "mt_dnn.loss"

# Criteria for labels that are classes, and criteria that compare logits with logits.
OF_CLASSES = (
    LossCriterion.CeCriterion,
    LossCriterion.RankCeCriterion,
    LossCriterion.SeqCeCriterion,
    LossCriterion.MlmCriterion,
)
DIVERGENCES = (
    LossCriterion.MseCriterion,
    LossCriterion.KlCriterion,
    LossCriterion.SymKlCriterion,
    LossCriterion.NsKlCriterion,
    LossCriterion.NsSymKlCriterion,
    LossCriterion.JSCriterion,
    LossCriterion.HLCriterion,
)
