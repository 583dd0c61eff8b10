#!/usr/bin/env bash
# Fine-tunes a multilingual encoder on XNLI. Arguments: those of run_glue_finetuning.sh; TASK is xnli, which trains on
# English, or a translated set such as xnli_de; MODEL_TYPE bert is the multilingual one. Every language that is in the
# data is tested on its own. What it writes goes to OUTPUT_ROOT/TASK/MODEL, OUTPUT_ROOT being xnli_app where it is not set.
set -euo pipefail

experiments=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=run_xnli_finetuning.sh
task_def=$experiments/xnli/xnli_task_def.yml
output_root=xnli_app
together=xnli
variant=multilingual-cased
tested_of() { parts_of xnli "$2"; }
source "$experiments/finetuning.sh"
