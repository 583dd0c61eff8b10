#!/usr/bin/env bash
# Fine-tunes an encoder on names (TASK ner), parts of speech (pos) or chunks (chunk) of CoNLL-2003, or with TASK mtdnn on
# all three together. Arguments: those of run_glue_finetuning.sh; MODEL_TYPE bert is the cased one. What it writes goes to
# OUTPUT_ROOT/TASK/MODEL, OUTPUT_ROOT being ner_app where it is not set.
set -euo pipefail

experiments=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=run_ner_finetuning.sh
task_def=$experiments/ner/ner_task_def.yml
output_root=ner_app
together=ner,pos,chunk
variant=cased
tested_of() { echo "$1"; }
source "$experiments/finetuning.sh"
