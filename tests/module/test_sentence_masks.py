from __future__ import annotations

import torch

from module.sentence_masks import from_mtdnn_mask, sentence_masks


def test_token_types_tell_the_sentences():
    #                    CLS a b SEP c SEP PAD PAD
    ids = torch.tensor([[2, 7, 8, 3, 9, 3, 0, 0], [2, 7, 3, 8, 9, 7, 8, 3]])
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1]])
    mask = (ids != 0).long()
    premise, hypothesis = sentence_masks(ids, types, mask)
    assert premise.int().tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
    assert hypothesis.int().tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1]]


def test_separators_tell_them_where_there_are_no_types():
    #                    <s> a </s> </s> b </s> pad; the second has no types, the third one sentence
    ids = torch.tensor([[0, 7, 2, 2, 8, 2, 1], [0, 7, 8, 2, 2, 9, 2], [0, 7, 8, 2, 1, 1, 1]])
    mask = (ids != 1).long()
    for types in (None, torch.zeros_like(ids)):
        premise, hypothesis = sentence_masks(ids, types, mask)
        assert premise.int().tolist() == [[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0]]
        assert hypothesis.int().tolist() == [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]]


def test_rows_with_and_without_types_in_one_batch():
    ids = torch.tensor([[2, 7, 3, 8, 3], [2, 7, 3, 8, 3]])
    types = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]])
    premise, hypothesis = sentence_masks(ids, types)
    assert premise.int().tolist() == [[1, 1, 1, 0, 0]] * 2 and hypothesis.int().tolist() == [[0, 0, 0, 1, 1]] * 2


def test_a_third_token_type_belongs_to_neither():
    ids, types = torch.tensor([[7, 4, 8, 4, 3]]), torch.tensor([[0, 0, 1, 1, 2]])  # XLNet: A <sep> B <sep> <cls>
    premise, hypothesis = sentence_masks(ids, types)
    assert premise.int().tolist() == [[1, 1, 0, 0, 0]] and hypothesis.int().tolist() == [[0, 0, 1, 1, 0]]


def test_masks_of_mt_dnns_call_have_1_at_what_is_left_out():
    left_out = torch.tensor([[0, 1, 0]], dtype=torch.uint8)
    assert from_mtdnn_mask(left_out, 5).int().tolist() == [[1, 0, 1, 0, 0]]
