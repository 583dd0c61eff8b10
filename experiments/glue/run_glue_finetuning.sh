#!/usr/bin/env bash
# Fine-tunes an encoder on a task of GLUE, or with TASK mtdnn on eight of them together. The first six arguments are
# MT-DNN's, the others flags of train.py. What it writes goes to OUTPUT_ROOT/TASK/MODEL, OUTPUT_ROOT being glue_app where
# it is not set.
set -euo pipefail

usage="usage: run_glue_finetuning.sh DATA_DIR MODEL_TYPE MODEL_SIZE TASK BATCH_SIZE NUM_GPUS [FLAG...]"
if [[ $# -lt 6 ]]; then
  echo "error: $usage" >&2
  exit 2
fi
data_dir=$1
model_type=$2
model_size=$3
task=$4
batch_size=$5
num_gpus=$6
shift 6

case $model_type in
  bert) model=bert-$model_size-uncased ;;
  roberta) model=roberta-$model_size ;;
  deberta) model=microsoft/deberta-$model_size ;; # a size such as v3-base too
  electra) model=google/electra-$model_size-discriminator ;;
  mtdnn) model=mt_dnn_models/mt_dnn_${model_size}_uncased.pt ;;
  *)
    echo "error: MODEL_TYPE: found $model_type, accepted: bert, roberta, deberta, electra, mtdnn; $usage" >&2
    exit 2
    ;;
esac
# an MT-DNN checkpoint reads the tokens of the BERT that it began with
tokens=$(basename "$model")
[[ $model_type == mtdnn ]] && tokens=bert-$model_size-uncased

trained=$task
[[ $task == mtdnn ]] && trained=mnli,rte,qqp,qnli,mrpc,sst,cola,stsb
tested=${trained/mnli/mnli_matched,mnli_mismatched}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
launcher=(python)
[[ $num_gpus -ge 2 ]] && launcher=(torchrun --nproc_per_node "$num_gpus")
output_dir=${OUTPUT_ROOT:-glue_app}/$task/$tokens
mkdir -p "$output_dir"
exec "${launcher[@]}" "$root/train.py" \
  --task_def "$root/experiments/glue/glue_task_def.yml" --data_dir "$data_dir/$tokens" \
  --train_datasets "$trained" --test_datasets "$tested" --init_checkpoint "$model" \
  --epochs 3 --learning_rate 5e-5 --optimizer adamax --batch_size "$batch_size" \
  --output_dir "$output_dir" --log_file "$output_dir/mt-dnn-train.log" "$@"
