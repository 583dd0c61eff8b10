#!/usr/bin/env bash
# Trains an encoder on eight tasks of GLUE together, then fine-tunes what came of it on each alone [Liu et al. 2019].
# Arguments: those of run_glue_finetuning.sh without TASK. What it writes goes to OUTPUT_ROOT/mtdnn and
# OUTPUT_ROOT/mtdnn_finetuned, OUTPUT_ROOT being glue_app where it is not set.
set -euo pipefail

if [[ $# -lt 5 ]]; then
  echo "error: usage: run_mtl_then_finetuning.sh DATA_DIR MODEL_TYPE MODEL_SIZE BATCH_SIZE NUM_GPUS [FLAG...]" >&2
  exit 2
fi
model=("$1" "$2" "$3")
sizes=("$4" "$5")
shift 5

export OUTPUT_ROOT=${OUTPUT_ROOT:-glue_app}
run=$(dirname "${BASH_SOURCE[0]}")/run_glue_finetuning.sh
bash "$run" "${model[@]}" mtdnn "${sizes[@]}" "$@"
checkpoint=$(ls -t "$OUTPUT_ROOT"/mtdnn/*/model_*.pt | head -n 1) # the newest is of the run's last epoch
export OUTPUT_ROOT=$OUTPUT_ROOT/mtdnn_finetuned
for task in mnli rte qqp qnli mrpc sst cola stsb; do
  bash "$run" "${model[@]}" "$task" "${sizes[@]}" "$@" --init_checkpoint "$checkpoint"
done
