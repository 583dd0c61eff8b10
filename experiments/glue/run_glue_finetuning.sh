#!/usr/bin/env bash
# Fine-tunes an encoder on a task of GLUE, or with TASK mtdnn on eight of them together. The first six arguments are
# MT-DNN's, the others flags of train.py. What it writes goes to OUTPUT_ROOT/TASK/MODEL, OUTPUT_ROOT being glue_app where
# it is not set.
set -euo pipefail

experiments=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=run_glue_finetuning.sh
task_def=$experiments/glue/glue_task_def.yml
output_root=glue_app
together=mnli,rte,qqp,qnli,mrpc,sst,cola,stsb
variant=uncased
tested_of() { echo "${1/mnli/mnli_matched,mnli_mismatched}"; }
source "$experiments/finetuning.sh"
