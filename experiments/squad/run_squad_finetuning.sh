#!/usr/bin/env bash
# Fine-tunes an encoder on squad or squad-v2. The arguments are those of run_glue_finetuning.sh, which it calls. What it
# writes goes to OUTPUT_ROOT/TASK/MODEL, OUTPUT_ROOT being squad_app where it is not set.
set -euo pipefail

if [[ $# -lt 6 ]]; then
  echo "error: usage: run_squad_finetuning.sh DATA_DIR MODEL_TYPE MODEL_SIZE TASK BATCH_SIZE NUM_GPUS [FLAG...]" >&2
  exit 2
fi
experiments=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export OUTPUT_ROOT=${OUTPUT_ROOT:-squad_app}
exec bash "$experiments/glue/run_glue_finetuning.sh" "${@:1:6}" \
  --task_def "$experiments/squad/squad_task_def.yml" --max_answer_len 30 "${@:7}"
