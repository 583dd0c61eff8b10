"""sentence-transformers: AdversarialMixin refuses its trainers, its models have an R of one text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import Tensor

from mt_dnn.hf_trainer import AdversarialMixin
from mt_dnn.perturbation import SmartPerturbation
from tests.hf import collate, examples, tiny_model
from tests.loops.by_hand import SEEDS, assert_same, by_hand, gradients, regularizer

st = pytest.importorskip("sentence_transformers")


def vocabulary(folder: Path) -> Path:
    """A folder with a tiny BERT and a tokenizer of forty words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(35))]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = vocabulary(tmp_path_factory.mktemp("bert"))
    tiny_model("classification").save_pretrained(folder)
    return folder


def sentence_model(folder: Path) -> Any:
    models = st.models if hasattr(st, "models") else st.sentence_transformer.modules
    transformer = models.Transformer(str(folder))
    return st.SentenceTransformer(modules=[transformer, models.Pooling(16)], device="cpu").double().train()


@pytest.mark.parametrize("base", ["SentenceTransformerTrainer", "CrossEncoderTrainer", "SparseEncoderTrainer"])
def test_its_trainers_are_refused_when_they_are_made(base: str) -> None:
    kind: Any = type("Own", (AdversarialMixin, getattr(st, base)), {})
    with pytest.raises(ValueError, match=f"^Own: {base} encodes the texts of a batch one after the other"):
        kind(perturbation=SmartPerturbation.with_defaults())


def text() -> dict[str, Tensor]:
    batch = collate(examples("classification"))
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def embedding(model: Any, features: Any) -> Tensor:
    """Of the texts, (rows, size); on a copy, for the model puts its results into the dictionary."""
    found: Tensor = model(dict(features))["sentence_embedding"]
    return found


def scores(model: Any, features: Any) -> Tensor:
    found: Tensor = model(dict(features))["scores"]
    return found


def block_of(model: Any, level: str) -> Any:
    block = next(module for name, module in model.named_modules() if name.endswith(".embeddings"))
    return block.word_embeddings if level == "pre_ln" else block.LayerNorm


@pytest.mark.parametrize("level", ["pre_ln", "post_ln"])
def test_embeddings_of_texts_have_the_r_by_hand(level: str, folder: Path) -> None:
    model, features = sentence_model(folder), text()
    bound = regularizer("smart", model, level, 2, task_type="numbers", forward=embedding)
    found = gradients(model, bound(model, features, embedding(model, features), noise_seeds=SEEDS[:3]))
    value = by_hand(
        "smart",
        lambda: embedding(model, features),
        block_of(model, level),
        features,
        level=level,
        k=2,
        numbers=True,
    )
    assert_same(found, gradients(model, value), 1e-9)


def test_a_cross_encoder_has_the_r_by_hand(folder: Path) -> None:
    model, features = st.CrossEncoder(str(folder), device="cpu").double().train(), text()
    bound = regularizer("smart", model, "post_ln", 2, task_type="classes", forward=scores)
    found = gradients(model, bound(model, features, scores(model, features), noise_seeds=SEEDS[:3]))

    def output() -> Any:
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=scores(model, features))

    value = by_hand("smart", output, block_of(model, "post_ln"), features, level="post_ln", k=2)
    assert_same(found, gradients(model, value), 1e-9)


def test_several_texts_at_once_and_a_forgotten_forward_are_refused(folder: Path) -> None:
    model, features = sentence_model(folder), text()
    clean = embedding(model, features)
    bound = regularizer("smart", model, task_type="numbers", forward=embedding)
    with pytest.raises(ValueError, match="found a batch that is a list; accepted: the arguments of one forward by na"):
        bound(model, [features, features], clean)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dict holds no logits; it has: input_ids, attention_mask, token_embeddings"):
        bound(model, features, model(dict(features)))
    with pytest.raises(ValueError, match="16 numbers a text.*give task_type='classes', 'labels'.*or 'numbers'"):
        regularizer("smart", model, forward=embedding)(model, features, clean)

    def both(own: Any, _: Any) -> Tensor:
        return embedding(own, features) - embedding(own, features)

    with pytest.raises(ValueError, match="embeds words twice in one forward"):
        regularizer("smart", model, task_type="numbers", forward=both)(model, features, both(model, features))
