from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from docs_build.encoder_families import FAMILIES, tiny_model
from mt_dnn.checkpoints.build import build_network
from mt_dnn.configuration.config import parse_args
from tasks.definition import TaskDefs

TASKS = "toy: {data_format: MLM, task_type: MaskLM, n_class: 40, metric_meta: [ACC]}"


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm_roberta", "albert", "electra", "distilbert", "deberta_v2"])
def test_a_pre_trained_head_goes_on_with_the_librarys_scores(tmp_path: Path, family: str):
    (tmp_path / "tasks.yml").write_text(TASKS)
    torch.manual_seed(0)
    kind = transformers.MODEL_FOR_MASKED_LM_MAPPING[FAMILIES[family].model.config_class]
    pretrained = tiny_model(family, model=kind)
    with torch.no_grad():
        for parameter in pretrained.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    pretrained.save_pretrained(tmp_path / "encoder")
    config = parse_args(["--init_checkpoint", str(tmp_path / "encoder"), "--task_def", str(tmp_path / "tasks.yml")])
    network = build_network(config, [TaskDefs(tmp_path / "tasks.yml").get_task_def("toy")]).eval()
    input_ids = torch.randint(6, 40, (2, 7))
    mask = torch.ones_like(input_ids)
    expected = pretrained.eval()(input_ids=input_ids, attention_mask=mask).logits
    torch.testing.assert_close(network(input_ids, torch.zeros_like(input_ids), mask), expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_without_one_has_a_new_head(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "tasks.yml").write_text(TASKS)
    tiny_model("bert").save_pretrained(tmp_path / "encoder")
    config = parse_args(["--init_checkpoint", str(tmp_path / "encoder"), "--task_def", str(tmp_path / "tasks.yml")])
    with caplog.at_level("INFO"):
        network = build_network(config, [TaskDefs(tmp_path / "tasks.yml").get_task_def("toy")])
    assert "the head starts anew" in caplog.text and (network.scoring_list[0].bias == 0).all()
