"""A checkpoint with a task of every type: small encoders with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from mt_dnn.configuration.config import Config
from mt_dnn.model import MTDNNModel
from mt_dnn.prediction import TextModel, load_model
from tasks.definition import TaskDefs
from tests.tasks.learning import write_small_encoder

DEFINITION = """
one: {data_format: PremiseOnly, task_type: Classification, n_class: 3, metric_meta: [ACC, F1MAC], labels: [a, b, c],
      actf: tanh}
pair: {data_format: PremiseAndOneHypothesis, task_type: Classification, n_class: 2, metric_meta: [ACC, MCC]}
number: {data_format: PremiseOnly, task_type: Regression, n_class: 1, metric_meta: [Pearson, Spearman]}
several: {data_format: PremiseOnly, task_type: MultiLabel, n_class: 3, metric_meta: [F1MIC, F1MAC, ACC],
          labels: [x, y, z]}
rank: {data_format: PremiseAndMultiHypothesis, task_type: Ranking, n_class: 1, metric_meta: [ACC]}
cloze: {data_format: ClozeChoice, task_type: ClozeChoice, n_class: 1, metric_meta: [EmF1]}
tags: {data_format: Seqence, task_type: SeqenceLabeling, n_class: 6, metric_meta: [ACC, SeqEval],
       labels: [O, B-N, I-N, X, CLS, SEP]}
span: {data_format: CLUE_SPAN, task_type: SpanClassification, n_class: 2, metric_meta: [EmF1]}
perhaps: {data_format: CLUE_SPAN, task_type: SpanClassificationYN, n_class: 2, metric_meta: [EmF12]}
spans: {data_format: CLUE_SPAN, task_type: SpanSeqenceLabeling, n_class: 3, metric_meta: [ACC]}
gaps: {data_format: MLM, task_type: MaskLM, n_class: 30, metric_meta: [ACC]}
"""


@pytest.fixture(scope="session")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model_0.pt`, `tasks.yml` and the encoder `small`."""
    folder = tmp_path_factory.mktemp("every_type")
    encoder = write_small_encoder(folder / "small")
    (folder / "tasks.yml").write_text(DEFINITION)
    task_defs = TaskDefs(folder / "tasks.yml")
    flags = {"init_checkpoint": str(encoder), "train_datasets": task_defs.names, "cuda": False}
    model = MTDNNModel(Config.from_flags(flags), [task_defs.get_task_def(name) for name in task_defs.names])
    model.save(str(folder / "model_0.pt"))
    return folder


@pytest.fixture(scope="session")
def model(every_type: Path) -> TextModel:
    return load_model(every_type / "model_0.pt", cuda=False)
