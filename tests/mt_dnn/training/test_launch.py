"""What a launcher may ask for: other engines and settings that would be wrong here are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

import train
from data_utils.errors import UserError, run_command_line
from mt_dnn.training.processes import build_accelerator
from tests.mt_dnn.runs import tiny_config


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "ACCELERATE_USE_FSDP",
            "true",
            r"FSDP \(ACCELERATE_USE_FSDP\).*accepted: train.py's --fsdp, or one process per device with Distributed",
        ),
        ("ACCELERATE_USE_DEEPSPEED", "true", r"DeepSpeed \(ACCELERATE_USE_DEEPSPEED\).*torchrun or accelerate launch"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "parallelism_config"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed precision 'fp16'; accepted: train.py's --fp16 or --bf16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "4 gradient accumulation steps; accepted: 1 there, and"),
    ],
)
def test_what_would_be_wrong_is_refused(
    variable: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message) as caught:
        build_accelerator(tiny_config(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_command_line_ends_with_2_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "1")
    with pytest.raises(SystemExit) as ended:
        run_command_line(lambda: train.main(["--output_dir", str(tmp_path)]))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: FSDP") and error.count("\n") == 1


def test_what_accelerate_launch_sets_by_default_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (("MIXED_PRECISION", "no"), ("GRADIENT_ACCUMULATION_STEPS", "1"), ("USE_FSDP", "false")):
        monkeypatch.setenv(f"ACCELERATE_{variable}", value)
    assert build_accelerator(tiny_config(tmp_path)).mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert build_accelerator(tiny_config(tmp_path, "--bf16")).mixed_precision == "bf16"
