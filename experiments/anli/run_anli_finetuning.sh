#!/usr/bin/env bash
# Fine-tunes an encoder on a round of ANLI. Arguments: those of run_glue_finetuning.sh; TASK is anli_r1, anli_r2, anli_r3
# or mtdnn, all three. Every round that is in the data is tested on its own. What it writes goes to OUTPUT_ROOT/TASK/MODEL,
# OUTPUT_ROOT being anli_app where it is not set.
set -euo pipefail

experiments=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=run_anli_finetuning.sh
task_def=$experiments/anli/anli_task_def.yml
output_root=anli_app
together=anli_r1,anli_r2,anli_r3
variant=uncased
tested_of() { parts_of anli "$2"; }
source "$experiments/finetuning.sh"
