"""The docstrings of the methods: all have the same parts, and their examples run."""

from __future__ import annotations

import doctest

import pytest
import torch
import torch.nn.functional as F

from mt_dnn.perturbation import methods
from tests.encoders import tiny_classifier, token_batch

CLASSES = [getattr(methods, name) for name in methods.__all__ if name != "PERTURBATIONS"]
PARTS = ("Paper: ", "https://", "Climbs: ", "Adds: ", "Args:\n", "Shape:\n", "Examples:\n")


@pytest.mark.parametrize("method", CLASSES)
def test_a_docstring_has_all_parts_in_order(method: type) -> None:
    text = vars(method)["__doc__"]
    places = [text.find(part) for part in PARTS]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("method", CLASSES)
def test_the_example_runs_and_gives_a_regularizer(method: type) -> None:
    model = tiny_classifier()
    input_ids, token_type_ids, attention_mask = token_batch(model.bert)
    names = {
        **vars(methods), "model": model, "input_ids": input_ids, "token_type_ids": token_type_ids,
        "attention_mask": attention_mask, "logits": model(input_ids, token_type_ids, attention_mask),
        "labels": torch.tensor([0, 2, 1]), "F": F,
    }  # fmt: skip
    examples = doctest.DocTestFinder(recurse=False).find(method, method.__name__, globs=names)
    assert sum(len(test.examples) for test in examples) == 2
    for test in examples:
        result = doctest.DocTestRunner().run(test, clear_globs=False)
        assert result.failed == 0
        R = test.globs["R"]
        assert R.dim() == 0 and R > 0 and R.requires_grad
