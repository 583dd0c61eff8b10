#!/usr/bin/env bash
# Runs run_domain_adaptation.sh on 0.1, 1, 10 and 100 % of SciTail and SNLI, those that are in DATA_DIR.
# Arguments: DATA_DIR INIT_CHECKPOINT [FLAG...], where not given MT-DNN's; the flags are train.py's.
set -euo pipefail

data_dir=${1:-data/domain_adaptation}
checkpoint=${2:-mt_dnn_models/mt_dnn_base_uncased.pt}
shift $(($# < 2 ? $# : 2))

for task in scitail snli; do
  if [[ ! -f $data_dir/${task}_train.json ]]; then
    echo "skipped $task: no ${task}_train.json in $data_dir"
    continue
  fi
  for share in _001:8 _01:8 _1:32 :32; do # a batch of 32 is too large for a few examples
    bash "$(dirname "${BASH_SOURCE[0]}")/run_domain_adaptation.sh" \
      "$data_dir" "$checkpoint" "$task${share%:*}" "$task" "${share#*:}" "$@"
  done
done
