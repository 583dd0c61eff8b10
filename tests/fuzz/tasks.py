"""A task of every type, with lines of canonical text and of a token file that are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks import Task, get_task
from tasks.definition import TaskDefs

DEFINITIONS = """
class: {data_format: PremiseOnly, task_type: Classification, n_class: 2, metric_meta: [ACC, MCC, AUC, F1]}
named:
  {data_format: PremiseAndOneHypothesis, task_type: Classification, n_class: 2, metric_meta: [CMAT],
   labels: ['no', 'yes']}
number: {data_format: PremiseAndOneHypothesis, task_type: Regression, n_class: 1, metric_meta: [Pearson, Spearman]}
rank: {data_format: PremiseAndMultiHypothesis, task_type: Ranking, n_class: 1, metric_meta: [ACC, F1]}
tags:
  {data_format: Seqence, task_type: SeqenceLabeling, n_class: 5, metric_meta: [SeqEval, ACC],
   labels: [O, B-A, X, CLS, SEP]}
span: {data_format: CLUE_SPAN, task_type: SpanClassification, n_class: 2, metric_meta: [EmF1]}
spanyn: {data_format: CLUE_SPAN, task_type: SpanClassificationYN, n_class: 3, metric_meta: [EmF12]}
spans: {data_format: CLUE_SPAN, task_type: SpanSeqenceLabeling, n_class: 3, metric_meta: [ACC]}
text: {data_format: CLUE_GEN, task_type: SeqenceGeneration, n_class: 1, metric_meta: [EmF1]}
short: {data_format: PremiseOnly, task_type: SeqenceGeneration, n_class: 1, metric_meta: [ACC]}
mlm: {data_format: MLM, task_type: MaskLM, n_class: 1, metric_meta: [ACC]}
many:
  {data_format: PremiseOnly, task_type: MultiLabel, n_class: 3, metric_meta: [F1MIC, F1MAC, ACC, AUC],
   labels: [a, b, c]}
cloze: {data_format: ClozeChoice, task_type: ClozeChoice, n_class: 1, metric_meta: [EmF1, ACC]}
"""

SPAN = "good bad"
TSV = {
    "class": "0\t1\tgood film\n1\t0\tbad d\u00e9j\u00e0\n",
    "named": "0\tyes\tgood\tfine\n1\tno\tbad\tpoor\n",
    "number": "0\t3.5\tgood\tfine\n1\t-1e3\tbad\tpoor\n",
    "rank": "0\t0-0,0-1\t1,0\tgood\tfine\tbad\n1\t1-0\t1\tbad\tpoor\n",
    "tags": "0\t['O', 'B-A']\t['good', \"fi'ne\"]\n1\t[\"O\"]\t[\"bad\"]\n",
    "span": f'0\t["bad"]\t[5]\t{SPAN}\tpoor\n1\t["good", "bad"]\t[0, 5]\t{SPAN}\tfine\n',
    "spanyn": f'0\t["bad"]\t[5]\t{SPAN}\tpoor\n1\t[]\t[]\t{SPAN}\tfine\n',
    "spans": f'0\t["bad"]\t[5]\t{SPAN}\tpoor\n1\t["good", "bad"]\t[0, 5]\t{SPAN}\tfine\n',
    "text": f'0\t["bad"]\t{SPAN}\tpoor\n1\t[]\t{SPAN}\tfine\n',
    "short": "0\tgood\tfine fine\n1\tbad\tpoor\n",
    "mlm": "good film\nbad film\n\npoor\n",
    "many": "0\t[0, 1, 1]\tgood film\n1\t[0.5, 0, 0.0]\tbad\n",
    "cloze": "0\t['a', 'b']\t['a']\t1,0\tgood\tfine a\tfine b\n",
}
ONE = {"uid": "0", "token_id": [2, 4, 5, 3], "type_id": [0, 0, 0, 0], "attention_mask": [1, 1, 1, 1]}
MANY = {name: [own, own[:]] for name, own in ONE.items() if isinstance(own, list)} | {"uid": "0"}
WINDOW: dict[str, Any] = {
    "uid": "0", "token_id": [2, 4, 3, 5, 6, 3], "type_id": [0, 0, 0, 1, 1, 1], "mask": [1] * 6,
    "offset_mapping": [None, None, None, [0, 4], [5, 8], None], "null_ans_index": 0, "context": SPAN,
    "answer": {"text": ["bad"], "answer_start": [5]},
}  # fmt: skip
TOKENS: dict[str, list[dict[str, Any]]] = {
    "class": [{**ONE, "label": 1, "softlabel": [0.25, -1]}, {**ONE, "uid": 1, "label": 0, "softlabel": [0, 1]}],
    "named": [{**ONE, "label": 1}, {**ONE, "label": 0, "attention_mask": [1, 1, 1, 0]}],
    "number": [{**ONE, "label": 0.5}, {**ONE, "label": -3}],
    "rank": [{**MANY, "label": 1, "ruid": ["a", "b"], "olabel": [0.0, 2.0]}, {**MANY, "label": 0}],
    "tags": [{**ONE, "label": [3, 0, 1, 4]}, {**ONE, "label": [3, 1, 2, 4]}],
    "span": [{**WINDOW, "label": [4, 4]}, {**WINDOW, "uid": "1", "label": [3, 4]}],
    "spanyn": [{**WINDOW, "label": [4, 4, 1]}, {**WINDOW, "uid": "1", "label": [0, 0, 0], "answer": {"text": []}}],
    "spans": [{**WINDOW, "label": [0, 0, 0, 1, 2, 0], "window_start": 0}],
    "text": [{**ONE, "label": [0, 4, 3], "answer": "good"}, {**ONE, "label": [0, 3], "answer": "no answer"}],
    "short": [{**ONE, "label": [0, 4, 3], "answer": "good"}],
    "mlm": [ONE, {**ONE, "uid": "1-0"}],
    "many": [{**ONE, "label": [0, 1, 0.5], "softlabel": [0.25, -1, 0]}, {**ONE, "label": [1, 0, 0]}],
    "cloze": [{**MANY, "label": 0, "choice": "['a', 'b']", "answer": "['a']", "olabel": [1.0, 0.0]}],
}
TYPES = sorted(TSV)


def read_tasks(folder: Path, encoder: Path) -> dict[str, Task]:
    """By name; `encoder` is a folder with a tokenizer."""
    path = folder / "tasks.yml"
    path.write_text(DEFINITIONS, encoding="utf-8")
    definitions = TaskDefs(path)
    return {name: get_task(definitions.get_task_def(name), {"tokenizer": str(encoder)}) for name in definitions.names}
