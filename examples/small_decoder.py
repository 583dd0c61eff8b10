"""What both decoder examples share: texts, a small decoder that is trained on them first, an attack.

The decoder is a Llama of about a million weights with a vocabulary of its own. It is no good writer, but it is a real
language model of the texts, and it is trained in a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from mt_dnn.perturbation.injection import NoiseInjection, find_encoder

LABELS = ("negative", "positive")
TEST_SHARE = 0.2
BLOCK = 64  # tokens in a row of the decoder's training


class Row(NamedTuple):
    """A text and its label, `negative` or `positive`."""

    label: str
    text: str

    @property
    def is_test(self) -> bool:
        """Whether the row is for testing, by its text: such a row trains neither the decoder nor what is made of it."""
        digest = hashlib.sha256(self.text.encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < TEST_SHARE


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of lines `label TAB text`; columns before them, such as an id, are left out.

    Raises:
        ValueError: a line has another form.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        *_, label, text = ["", *line.split("\t")]
        if label not in LABELS or not text:
            raise ValueError(f"{path}, line {number}: found {line[:40]!r}; accepted: negative or positive, a tab, text")
        rows.append(Row(label, text))
    return rows


def read_arguments(
    argv: Sequence[str] | None, description: str | None, rows: int, tests: int, epochs: float
) -> tuple[argparse.Namespace, list[list[Row]]]:
    """The flags of an example, and the rows of each of its files; a file that cannot be read ends the command.

    Args:
        rows, tests, epochs: the defaults of these flags.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    sentences = Path(__file__).with_name("sentiment.tsv")
    parser.add_argument("--data", type=Path, nargs="+", default=[sentences], help="files of label TAB text")
    parser.add_argument("--decoder", type=Path, default=Path("small_decoder"), help="its folder (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=400, help="updates of the decoder's training")
    parser.add_argument("--rows", type=int, default=rows, help="rows to train on (default: %(default)s)")
    parser.add_argument("--tests", type=int, default=tests, help="rows to test on (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=epochs, help="passes over the rows (default: %(default)s)")
    parser.add_argument("--radius", type=float, default=0.1, help="size of the attack's noise (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        return arguments, [read_rows(path) for path in arguments.data]
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def load_decoder(folder: Path, texts: Sequence[str], updates: int) -> Any:
    """The tokenizer of the decoder in `folder`; a decoder is trained on the texts first if there is none.

    Args:
        updates: of 32 rows of 64 tokens.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if (folder / "config.json").is_file():
        print(f"{folder}: the decoder there is used again; delete the folder to train another", flush=True)
    else:
        _train_decoder(folder, texts, updates)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _train_decoder(folder: Path, texts: Sequence[str], updates: int) -> None:
    tokenizer = _train_tokenizer(texts)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, **sizes,
    )  # fmt: skip
    decoder = LlamaForCausalLM(config).train()
    ids = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = torch.tensor((ids * math.ceil(BLOCK / len(ids)))[: max(1, len(ids) // BLOCK) * BLOCK]).view(-1, BLOCK)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=updates + 1, pct_start=0.1)
    for update in range(updates):
        batch = rows[torch.randint(len(rows), (32,))]
        loss = decoder(input_ids=batch, labels=batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if update % 50 == 0 or update == updates - 1:
            print(f"decoder, update {update}: perplexity {loss.exp().item():.0f}", flush=True)
    decoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of 2,048 pieces of bytes, so that every text can be written with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


Loss = Callable[[Any], Tensor]


def random_noise(model: Any, batch: dict[str, Tensor], radius: float) -> Tensor:
    """Noise in a random direction, (rows, tokens, hidden): a share `radius` of each word vector's length."""
    words = _word_vectors(model, batch)
    noise = torch.randn(words.shape)
    return noise * radius * _length(words) / _length(noise)


def attack(model: Any, batch: dict[str, Tensor], radius: float, loss: Loss, steps: int = 5) -> Tensor:
    """The noise within that radius that raises the loss most, as projected gradient ascent finds it.

    Args:
        loss: of the model's output, a sum over rows.
    """
    size = radius * _length(_word_vectors(model, batch))
    delta = random_noise(model, batch, radius / 10)
    for _ in range(steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(noisy(model, batch, delta)), delta)
        delta = delta.detach() + size / 2 * gradient / _length(gradient)
        delta = delta * (size / _length(delta)).clamp(max=1)
    return delta


def noisy(model: Any, batch: dict[str, Tensor], delta: Tensor) -> Any:
    """The model's output with noise on its word vectors."""
    with NoiseInjection(find_encoder(model), "pre_ln").add(delta):
        return model(**batch)


def _word_vectors(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        vectors: Tensor = model.get_input_embeddings()(batch["input_ids"])
    return vectors


def _length(x: Tensor) -> Tensor:
    return x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation; of one value, the value."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"
