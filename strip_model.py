r"""Write the shared encoder without heads, from a checkpoint or from a transformers model.

    python strip_model.py --checkpoint checkpoint/model_2.pt --fout mt_dnn_base.pt
    python strip_model.py --checkpoint checkpoint/model_2.pt --hf DIR --tokenizer bert-base-uncased
    python strip_model.py --checkpoint bert-base-uncased --fout bert_base.pt

--fout writes an --init_checkpoint, for this project and MT-DNN; --hf writes a folder that transformers loads. To export
a task's whole classifier, use `python -m mt_dnn.export.export`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from data_utils.errors import FlagError, OneLineParser, run_command_line


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", "--fin", required=True, help="checkpoint, or an encoder: hub name, folder, embedded-minilm"
    )
    parser.add_argument("--fout", help="checkpoint to write, without heads")
    parser.add_argument("--hf", help="folder to write for transformers, new or empty")
    parser.add_argument("--tokenizer", help="encoder whose tokenizer is written to the folder of --hf")
    parser.add_argument("--transformer_cache", default=".cache", help="folder for downloads")
    arguments = parser.parse_args(argv)
    if arguments.fout is None and arguments.hf is None:
        raise FlagError("found neither --fout nor --hf; accepted: one of them, or both")
    if arguments.tokenizer is not None and arguments.hf is None:
        raise FlagError("--tokenizer: found without --hf, accepted: with it")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_args(argv)
    from transformers.utils.logging import disable_progress_bar

    from data_utils.tokenizer import load_tokenizer
    from mt_dnn.checkpoints.encoder_files import read_encoder, write_checkpoint, write_folder

    disable_progress_bar()
    cache = arguments.transformer_cache
    encoder = read_encoder(arguments.checkpoint, cache)
    tokenizer = None if arguments.tokenizer is None else load_tokenizer(arguments.tokenizer, cache_dir=cache)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    what = f"{encoder.config.model_type}, {count:,} parameters"
    if arguments.fout is not None:
        write_checkpoint(arguments.fout, encoder)
        print(f"{arguments.fout}: {what}")
    if arguments.hf is not None:
        write_folder(arguments.hf, encoder, tokenizer)
        print(f"{arguments.hf}: {what}")


if __name__ == "__main__":
    run_command_line(main)
