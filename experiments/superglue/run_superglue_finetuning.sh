#!/usr/bin/env bash
# Fine-tunes an encoder on a task of SuperGLUE, or with TASK mtdnn on all eight together. Arguments: those of
# run_glue_finetuning.sh. What it writes goes to OUTPUT_ROOT/TASK/MODEL, OUTPUT_ROOT being superglue_app where it is not
# set.
set -euo pipefail

experiments=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=run_superglue_finetuning.sh
task_def=$experiments/superglue/superglue_task_def.yml
output_root=superglue_app
together=boolq,cb,copa,multirc,record,rte,wic,wsc
variant=uncased
tested_of() { echo "$1"; }
source "$experiments/finetuning.sh"
