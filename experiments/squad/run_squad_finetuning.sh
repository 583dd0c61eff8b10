#!/usr/bin/env bash
# Fine-tunes an encoder on squad or squad-v2, with TASK mtdnn on both together. Arguments: those of run_glue_finetuning.sh.
# What it writes goes to OUTPUT_ROOT/TASK/MODEL, OUTPUT_ROOT being squad_app where it is not set.
set -euo pipefail

experiments=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=run_squad_finetuning.sh
task_def=$experiments/squad/squad_task_def.yml
output_root=squad_app
together=squad,squad-v2
variant=uncased
tested_of() { echo "$1"; }
set -- "${@:1:6}" --max_answer_len 30 "${@:7}"
source "$experiments/finetuning.sh"
