"""Files and columns of each GLUE task, in the layouts in which it is published."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One split.

    Attributes:
        split: its name in the canonical TSV's file name.
        files: read one after the other, relative to the task's folder.
        columns: names of the columns if the files have no header line; None if they have one.
    """

    split: str
    files: tuple[str, ...]
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Layout:
    """One way in which a task is published.

    Attributes:
        folders: relative to the data folder; the first that holds one of the parts' files is read.
        parts: the splits.
        texts: columns of the premise and, in a pair task, the hypothesis.
        label: column of the label; a test file may lack it.
        skip_malformed: leave out lines with the wrong number of columns, which some published files have.
        skip_undecided: leave out examples labelled "-", on which the annotators did not agree.
    """

    folders: tuple[str, ...]
    parts: tuple[Part, ...]
    texts: tuple[str, ...]
    label: str
    skip_malformed: bool = False
    skip_undecided: bool = False


COLA_COLUMNS = ("source", "label", "mark", "sentence")
SCITAIL_COLUMNS = ("premise", "hypothesis", "label")


def _three_parts(pattern: str = "{}.tsv", columns: tuple[str, ...] | None = None) -> tuple[Part, ...]:
    return tuple(Part(split, (pattern.format(split),), columns) for split in ("train", "dev", "test"))


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "cola": (
        Layout(
            folders=("CoLA",),
            parts=(
                Part("train", ("train.tsv",), COLA_COLUMNS),
                Part("dev", ("dev.tsv",), COLA_COLUMNS),
                Part("test", ("test.tsv",)),
            ),
            texts=("sentence",),
            label="label",
        ),
        # CoLA's own public release: GLUE's development set is its two development sets in this order
        Layout(
            folders=("CoLA", "cola", "cola_public/raw", "."),
            parts=(
                Part("train", ("in_domain_train.tsv",), COLA_COLUMNS),
                Part("dev", ("in_domain_dev.tsv", "out_of_domain_dev.tsv"), COLA_COLUMNS),
                Part("indomain_dev", ("in_domain_dev.tsv",), COLA_COLUMNS),
                Part("outofdomain_dev", ("out_of_domain_dev.tsv",), COLA_COLUMNS),
            ),
            texts=("sentence",),
            label="label",
        ),
    ),
    "mnli": (
        Layout(
            folders=("MNLI",),
            parts=(
                Part("train", ("train.tsv",)),
                Part("matched_dev", ("dev_matched.tsv",)),
                Part("mismatched_dev", ("dev_mismatched.tsv",)),
                Part("matched_test", ("test_matched.tsv",)),
                Part("mismatched_test", ("test_mismatched.tsv",)),
            ),
            texts=("sentence1", "sentence2"),
            label="gold_label",
            skip_undecided=True,
        ),
    ),
    "mrpc": (Layout(("MRPC",), _three_parts(), ("#1 String", "#2 String"), "Quality"),),
    "qnli": (Layout(("QNLI",), _three_parts(), ("question", "sentence"), "label"),),
    # a few lines of the published files are incomplete
    "qqp": (Layout(("QQP",), _three_parts(), ("question1", "question2"), "is_duplicate", skip_malformed=True),),
    "rte": (Layout(("RTE",), _three_parts(), ("sentence1", "sentence2"), "label"),),
    "scitail": (
        Layout(
            folders=("SciTail/tsv_format", "SciTailV1.1/tsv_format"),
            parts=_three_parts("scitail_1.0_{}.tsv", SCITAIL_COLUMNS),
            texts=("premise", "hypothesis"),
            label="label",
        ),
    ),
    "snli": (
        Layout(("SNLI",), _three_parts(), ("sentence1", "sentence2"), "gold_label", skip_undecided=True),
        Layout(
            folders=("SNLI", "snli_1.0"),
            parts=_three_parts("snli_1.0_{}.txt"),
            texts=("sentence1", "sentence2"),
            label="gold_label",
            skip_undecided=True,
        ),
    ),
    "sst": (Layout(("SST-2",), _three_parts(), ("sentence",), "label"),),
    "stsb": (Layout(("STS-B",), _three_parts(), ("sentence1", "sentence2"), "score"),),
    "wnli": (Layout(("WNLI",), _three_parts(), ("sentence1", "sentence2"), "label"),),
}


@dataclass(frozen=True)
class HubSource:
    """A task on the Hugging Face hub.

    Attributes:
        path: the dataset's name.
        config: its configuration.
        texts: columns of the premise and, in a pair task, the hypothesis.
        splits: the hub's split of each canonical split.
        text_labels: the canonical label is the label's text, not its number.
    """

    path: str
    config: str | None
    texts: tuple[str, ...]
    splits: dict[str, str]
    text_labels: bool = False


HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
MNLI_HUB_SPLITS = {
    "train": "train",
    "matched_dev": "validation_matched",
    "mismatched_dev": "validation_mismatched",
    "matched_test": "test_matched",
    "mismatched_test": "test_mismatched",
}
GLUE = "nyu-mll/glue"

HUB_SOURCES: dict[str, HubSource] = {
    "cola": HubSource(GLUE, "cola", ("sentence",), HUB_SPLITS),
    "mnli": HubSource(GLUE, "mnli", ("premise", "hypothesis"), MNLI_HUB_SPLITS, text_labels=True),
    "mrpc": HubSource(GLUE, "mrpc", ("sentence1", "sentence2"), HUB_SPLITS),
    "qnli": HubSource(GLUE, "qnli", ("question", "sentence"), HUB_SPLITS, text_labels=True),
    "qqp": HubSource(GLUE, "qqp", ("question1", "question2"), HUB_SPLITS),
    "rte": HubSource(GLUE, "rte", ("sentence1", "sentence2"), HUB_SPLITS, text_labels=True),
    "scitail": HubSource("allenai/scitail", "tsv_format", ("premise", "hypothesis"), HUB_SPLITS, text_labels=True),
    "snli": HubSource("stanfordnlp/snli", None, ("premise", "hypothesis"), HUB_SPLITS, text_labels=True),
    "sst": HubSource(GLUE, "sst2", ("sentence",), HUB_SPLITS),
    "stsb": HubSource(GLUE, "stsb", ("sentence1", "sentence2"), HUB_SPLITS),
    "wnli": HubSource(GLUE, "wnli", ("sentence1", "sentence2"), HUB_SPLITS),
}
