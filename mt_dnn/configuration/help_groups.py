"""The order of `train.py --help`: the flags that most runs need, then by subject, last those without a use."""

from __future__ import annotations

from collections.abc import Iterable

from mt_dnn.configuration.flags import flags_of

FIRST = "What most runs need"
LAST = "Accepted from MT-DNN command lines, without a use here"

SUBJECTS: dict[str, str] = {
    FIRST: "task_def data_dir train_datasets test_datasets init_checkpoint output_dir epochs batch_size learning_rate "
    "adv_train adv_norm_level adv_opt save_hf resume",
    "Adversarial noise": "adv_preset adv_alpha adv_radius adv_step_size adv_noise_var adv_k adv_scale adv_p_norm "
    "adv_norm_scope adv_projection adv_noise adv_noise_clamp adv_epsilon adv_detach_base adv_same_dropout "
    "adv_start_ratio adv_every adv_free adv_free_budget unlabeled_datasets bregman_mu bregman_beta",
    "Optimization": "optimizer weight_decay momentum adam_eps scheduler_type warmup grad_clipping "
    "global_grad_clipping grad_accumulation_step dropout_p bert_dropout_p dropout_w vb_dropout seed max_skipped",
    "Batches and examples": "max_tokens_per_batch no_group_by_length batch_size_eval max_seq_len do_padding "
    "class_weights mkd_opt ratio mix_opt dataloader_num_workers",
    "Encoder and tokenizer": "bert_model_type encoder_type num_hidden_layers update_bert_opt tokenizer do_lower_case "
    "transformer_cache",
    "Best epoch, checkpoints and resuming": "best_metric early_stop save_per_updates_on save_per_updates keep_last "
    "model_ckpt",
    "Log and results": "log_file log_per_updates tensorboard tensorboard_logdir glue_format_on push_to_hub hub_private",
    "Speed and memory": "cuda fp16 bf16 compile cpu_linear grad_checkpointing fsdp",
    "Instead of training": "dry_run encode_mode",
    "Spans, generation and masked language modeling": "max_answer_len null_score_diff_threshold num_beams "
    "masked_lm_prob short_seq_prob max_predictions_per_seq",
    "Stochastic answer network (enable_san in a task definition)": "answer_opt answer_num_turn answer_mem_type "
    "answer_mem_drop_p answer_merge_opt answer_att_type answer_rnn_type answer_dropout_p answer_weight_norm_on "
    "mem_cum_type",
}


def help_groups(groups: Iterable[type]) -> dict[str, list[tuple[type, str]]]:
    """The flags of these dataclasses under the titles of the help: (dataclass, name of the flag) pairs.

    Raises:
        KeyError: a flag with a use that has no subject here.
    """
    subject_of = {name: title for title, names in SUBJECTS.items() for name in names.split()}
    group_of = {name: group for group in groups for name in flags_of(group)}
    unused = [name for name, group in group_of.items() if flags_of(group)[name].notice]
    missing = group_of.keys() - subject_of.keys() - set(unused)
    if missing:
        raise KeyError(f"no subject in help_groups.py for {', '.join(sorted(missing))}")
    found = {title: [(group_of[name], name) for name in names.split()] for title, names in SUBJECTS.items()}
    return found | {LAST: [(group_of[name], name) for name in unused]}
