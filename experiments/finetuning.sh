# What the run scripts share; one sources this after it has set:
#   script       its name
#   task_def     the YAML
#   output_root  where results go, where OUTPUT_ROOT is not set
#   together     the tasks of TASK mtdnn, comma-separated
#   variant      which BERT: uncased, cased, multilingual-cased
#   tested_of    a function: trained datasets and folder of the data → datasets to test on

# parts_of TASK FOLDER: the datasets TASK_PART with a development set in the folder, or TASK where there is none
parts_of() {
  local path parts=
  for path in "$2/$1"_*_dev.json; do
    [[ -f $path ]] && path=$(basename "$path") && parts+=,${path%_dev.json}
  done
  parts=${parts#,}
  echo "${parts:-$1}"
}

usage="usage: $script DATA_DIR MODEL_TYPE MODEL_SIZE TASK BATCH_SIZE NUM_GPUS [FLAG...]"
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
if [[ ! $num_gpus =~ ^[0-9]+$ ]]; then
  echo "error: NUM_GPUS: found $num_gpus, accepted: a whole number; $usage" >&2
  exit 2
fi

case $model_type in
  bert) model=bert-$model_size-$variant ;;
  roberta) model=roberta-$model_size ;;
  deberta) model=microsoft/deberta-$model_size ;; # a size such as v3-base too
  electra) model=google/electra-$model_size-discriminator ;;
  xlmr) model=xlm-roberta-$model_size ;;
  t5e) model=t5-$model_size ;; # its encoder
  mtdnn) model=mt_dnn_models/mt_dnn_${model_size}_uncased.pt ;;
  *)
    echo "error: MODEL_TYPE: found $model_type, accepted: bert, roberta, deberta, electra, xlmr, t5e, mtdnn; $usage" >&2
    exit 2
    ;;
esac
# an MT-DNN checkpoint reads the tokens of the BERT that it began with
tokens=$(basename "$model")
[[ ! -d $data_dir/$tokens && -d $data_dir/$model ]] && tokens=$model # where MT-DNN's prepro_std.py writes
[[ $model_type == mtdnn ]] && tokens=bert-$model_size-uncased

trained=$task
[[ $task == mtdnn ]] && trained=$together

launcher=(python)
[[ 10#$num_gpus -ge 2 ]] && launcher=(torchrun --nproc_per_node "$num_gpus")
output_dir=${OUTPUT_ROOT:-$output_root}/$task/$tokens
mkdir -p "$output_dir"
exec "${launcher[@]}" "$experiments/../train.py" \
  --task_def "$task_def" --data_dir "$data_dir/$tokens" \
  --train_datasets "$trained" --test_datasets "$(tested_of "$trained" "$data_dir/$tokens")" --init_checkpoint "$model" \
  --epochs 3 --learning_rate 5e-5 --optimizer adamax --batch_size "$batch_size" \
  --output_dir "$output_dir" --log_file "$output_dir/mt-dnn-train.log" "$@"
