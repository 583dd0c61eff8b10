r"""Write feature vectors of texts; a line of the input is a text, or two texts separated by `|||`.

    python experiments/dump_embedding/extractor.py --finput pairs.txt --foutput features.json \
        --bert_model bert-base-uncased --checkpoint mt_dnn_base.pt --layers 10,11

A line of the output is JSON: `uid`, the line's number from 0, and for each layer, under its number from 0, the vectors
of the line's tokens as the text of a list (tokens, hidden), as MT-DNN writes them.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

# The command is run as a file, so Python finds only this folder by itself.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.errors import DataError, FlagError, OneLineParser, at_least, run_command_line
from data_utils.storage.text_files import read_lines, write_lines
from mt_dnn.configuration.flags import truth

SPLIT = "|||"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finput", type=Path, required=True, help="texts, one or two a line")
    parser.add_argument("--foutput", type=Path, required=True, help="file of features to write")
    parser.add_argument(
        "--bert_model", required=True, help="encoder with the tokenizer: hub name, local folder, embedded-minilm"
    )
    parser.add_argument("--checkpoint", help="checkpoint of the encoder (default: that of --bert_model)")
    parser.add_argument("--do_lower_case", action="store_true", help="lower-case, where the tokenizer has the choice")
    parser.add_argument("--layers", help="layers' numbers from 0, comma-separated (default: the last two)")
    parser.add_argument(
        "--max_seq_length", type=at_least(1), default=512, help="longer lines are truncated to so many tokens"
    )
    parser.add_argument("--batch_size", type=at_least(1), default=4, help="lines per batch")
    parser.add_argument("--transformer_cache", default=".cache", help="folder for downloads")
    parser.add_argument("--cuda", type=truth, nargs="?", const=True, metavar="true|false", help="use the GPU")
    return parser.parse_args(argv)


def layer_numbers(text: str | None, count: int) -> list[int]:
    """The layer numbers that `--layers` names, for an encoder with `count` layers.

    Raises:
        FlagError: the encoder does not have such a layer.
    """
    if text is None:
        return list(range(max(count - 2, 0), count))
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal() or int(part) >= count]
    if wrong:
        raise FlagError(f"--layers: found {wrong[0]!r}, accepted: 0 to {count - 1}")
    return [int(part) for part in parts]


def read_texts(path: Path) -> list[str | tuple[str, str]]:
    """The texts and pairs of texts of a file.

    Raises:
        DataError: a line has more than two texts, or the file is empty.
    """
    texts: list[str | tuple[str, str]] = []
    for number, line in read_lines(path):
        parts = [part.strip() for part in line.split(SPLIT)]
        if len(parts) > 2:
            raise DataError(f"found {len(parts)} texts split by {SPLIT}; accepted: one or two", path, number)
        texts.append((parts[0], parts[1]) if len(parts) == 2 else parts[0])
    if not texts:
        raise DataError("found no line; at least one is needed", path)
    return texts


def features(
    encoder: Any, encoded: Sequence[dict[str, list[int]]], layers: Sequence[int], batch_size: int
) -> Iterator[dict[str, Any]]:
    """The objects of the output's lines, in the order of the input.

    Args:
        encoder: in evaluation mode.
        encoded: `token_id` and `type_id` of each line.
        layers: their numbers from 0.
        batch_size: lines a batch.
    """
    import torch

    takes_types = "token_type_ids" in inspect.signature(encoder.forward).parameters
    pad = getattr(encoder.config, "pad_token_id", None) or 0
    uid = 0
    waiting = iter(encoded)
    while batch := list(islice(waiting, batch_size)):
        width = max(len(own["token_id"]) for own in batch)

        def padded(rows: list[list[int]], value: int, width: int = width) -> Any:
            return torch.tensor([row + [value] * (width - len(row)) for row in rows], device=encoder.device)

        inputs = {
            "input_ids": padded([own["token_id"] for own in batch], pad),
            "attention_mask": padded([[1] * len(own["token_id"]) for own in batch], 0),
        }
        if takes_types:
            inputs["token_type_ids"] = padded([own["type_id"] for own in batch], 0)
        with torch.inference_mode():
            states = encoder(**inputs, output_hidden_states=True).hidden_states
        for row, own in enumerate(batch):
            length = len(own["token_id"])
            found = {str(layer): str(states[layer + 1][row, :length].cpu().tolist()) for layer in layers}
            yield {**found, "uid": str(uid)}
            uid += 1


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_args(argv)
    texts = read_texts(arguments.finput)
    from data_utils.prepro import Tokenization, TokenizerSpec
    from mt_dnn.checkpoints.encoder_files import read_encoder

    cache = arguments.transformer_cache
    lower = True if arguments.do_lower_case else None
    tokens = Tokenization(TokenizerSpec(arguments.bert_model, lower, cache, arguments.max_seq_length))
    encoder = read_encoder(arguments.checkpoint or arguments.bert_model, cache).eval()
    if len(tokens.tokenizer) > encoder.config.vocab_size:
        raise FlagError(
            f"--bert_model: its tokenizer has {len(tokens.tokenizer)} tokens, the encoder's vocabulary "
            f"{encoder.config.vocab_size}; is the checkpoint of another encoder?"
        )
    if arguments.cuda:
        encoder.cuda()
    layers = layer_numbers(arguments.layers, encoder.config.num_hidden_layers)
    found = features(encoder, list(tokens.encode(texts)), layers, arguments.batch_size)
    count = write_lines(arguments.foutput, map(json.dumps, found))
    print(f"{arguments.foutput}: {count} lines, layers {', '.join(map(str, layers))}")


if __name__ == "__main__":
    run_command_line(main)
