#!/usr/bin/env bash
# Fine-tunes a shared encoder on a share of SciTail or SNLI. The first five arguments are MT-DNN's, the others flags of
# train.py. What it writes goes to OUTPUT_ROOT/TRAIN, OUTPUT_ROOT being domain_app where it is not set.
set -euo pipefail

if [[ $# -lt 5 ]]; then
  echo "error: usage: run_domain_adaptation.sh DATA_DIR INIT_CHECKPOINT TRAIN TEST BATCH_SIZE [FLAG...]" >&2
  exit 2
fi
data_dir=$1
checkpoint=$2
train=$3
test=$4
batch_size=$5
shift 5

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
output_dir=${OUTPUT_ROOT:-domain_app}/$train
mkdir -p "$output_dir"
exec python "$root/train.py" \
  --task_def "$root/experiments/domain_adaptation/domain_adaptation_def.yml" --data_dir "$data_dir" \
  --train_datasets "$train" --test_datasets "$test" --init_checkpoint "$checkpoint" \
  --epochs 3 --learning_rate 5e-5 --optimizer adamax --batch_size "$batch_size" \
  --output_dir "$output_dir" --log_file "$output_dir/domain-adaptation-train.log" "$@"
