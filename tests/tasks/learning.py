"""Whole runs on made-up text: what a task type learns with a small encoder, and what a linear probe of it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import tokenizers
import torch
import transformers

import prepro_std
from data_utils.storage.text_files import write_lines
from mt_dnn.configuration.config import parse_args
from mt_dnn.training.trainer import train

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["red", "blue", "green", "white", "one", "two", "three", "four"]
SIFT = ("--adv_train", "--adv_norm_level", "post_ln")
SMART = ("--adv_train", "--adv_norm_level", "pre_ln")
PROBE = ("--update_bert_opt", "1")  # the encoder is frozen, the head alone learns


def write_small_encoder(folder: Path, words: Iterable[str] = WORDS) -> Path:
    """A BERT of two layers with random weights, of width 32, and a tokenizer of whole words."""
    torch.manual_seed(0)
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {
        name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    }
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=64, initializer_range=0.2, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, **sizes,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def write_task(root: Path, definition: str, splits: Mapping[str, Iterable[str]], encoder: Path, *flags: str) -> Path:
    """A task's YAML and TSVs, tokenized; returns the folder of the token files.

    Args:
        root: gets `tasks.yml` and the files.
        definition: the YAML.
        splits: lines by name, such as `toy_train`, with its ending where that is not `.tsv`.
        flags: of prepro_std.py.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "tasks.yml").write_text(definition)
    for name, lines in splits.items():
        write_lines(root / (name if "." in name else f"{name}.tsv"), lines)
    words = ["--model", str(encoder), "--root_dir", str(root), "--task_def", str(root / "tasks.yml"), *flags]
    prepro_std.main(words)
    return root / encoder.name


def learned(data: Path, encoder: Path, output: Path, dataset: str, metric: str, *flags: str) -> float:
    """The metric of a dataset's development set after a run's last epoch."""
    base = (
        f"--task_def {data.parent / 'tasks.yml'} --data_dir {data} --train_datasets {dataset} "
        f"--test_datasets {dataset} "
        f"--init_checkpoint {encoder} --output_dir {output} --log_file {output / 'log.txt'} --epochs 5 --batch_size 16 "
        "--optimizer adamw --learning_rate 3e-3 --dropout_p 0 --bert_dropout_p 0 --dataloader_num_workers 0"
    )
    result = train(parse_args([*base.split(), *flags]))
    return result.history[-1]["metrics"][f"{dataset}_dev"][metric]
