#!/usr/bin/env bash
# Trains an encoder as a masked language model on the text of task mlm, or goes on with it: with ALUM where the flags
# say --adv_train --adv_opt alum. What is given after the first three arguments are flags of train.py. OUTPUT_DIR is
# mlm_app where it is not set; its model_N.pt are what --init_checkpoint of a fine-tuning takes.
set -euo pipefail

if [[ $# -lt 3 ]]; then
  echo "error: usage: run_mlm.sh DATA_DIR INIT_CHECKPOINT BATCH_SIZE [FLAG...]" >&2
  exit 2
fi
data_dir=$1
checkpoint=$2
batch_size=$3
shift 3

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
output_dir=${OUTPUT_DIR:-mlm_app}
mkdir -p "$output_dir"
exec python "$root/train.py" \
  --task_def "$root/experiments/mlm/mlm.yml" --data_dir "$data_dir" --train_datasets mlm --test_datasets mlm \
  --init_checkpoint "$checkpoint" --epochs 3 --learning_rate 5e-5 --optimizer adamax --batch_size "$batch_size" \
  --output_dir "$output_dir" --log_file "$output_dir/mlm-train.log" "$@"
