"""What the mixin for sentence-transformers' trainers refuses, when it is made or at the first batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

pytest.importorskip("sentence_transformers")

import sentence_transformers as st
from datasets import Dataset
from sentence_transformers.sentence_transformer import losses

from mt_dnn.hf_trainer import AdversarialMixin, SentenceAdversarialMixin
from mt_dnn.perturbation import AdversarialTraining, FreeLbPerturbation, NeftunePerturbation, SmartPerturbation
from mt_dnn.perturbation.injection import UnsupportedLevelError
from tests.loops.test_sentence_trainers import PAIRS, SCORES, Sentences, columns, trainer_of
from tests.loops.test_sentence_trainers import folder as folder
from tests.loops.test_sentence_transformers import sentence_model


class LastPlace(nn.Module):
    """A pooling that depends on padding: the vector at the last place of the batch."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**features, "sentence_embedding": features["token_embeddings"][:, -1]}


def test_a_model_whose_output_depends_on_padding_is_refused(folder: Path, tmp_path: Path) -> None:
    transformer, _ = sentence_model(folder)
    model = st.SentenceTransformer(modules=[transformer, LastPlace()], device="cpu").double()
    trainer = trainer_of(Sentences, model, losses.CosineSimilarityLoss(model), columns(labels=SCORES), tmp_path)
    with pytest.raises(ValueError, match="^SentenceTransformer gives a text another output when it is padded further"):
        trainer.train()


class FirstTwice(losses.CosineSimilarityLoss):
    def forward(self, features: Any, labels: Tensor) -> Tensor:
        first, _ = features
        return super().forward([dict(first), dict(first)], labels)


class NoGradient(losses.CosineSimilarityLoss):
    def forward(self, features: Any, labels: Tensor) -> Tensor:
        with torch.no_grad():
            super().forward(features, labels)
        return next(self.model.parameters()).sum()


def test_a_loss_that_does_not_embed_each_column_once_is_refused(folder: Path, tmp_path: Path) -> None:
    model = sentence_model(folder)
    for kind, message in ((FirstTwice, "did not embed each column of texts once"), (NoGradient, "ran no forward with")):
        trainer = trainer_of(Sentences, model, kind(model), columns(labels=SCORES), tmp_path)
        with pytest.raises(ValueError, match=f"^{kind.__name__}: {message}"):
            trainer.train()
    one = Dataset.from_dict({"first": PAIRS["first"], "label": [0, 1, 0]})
    trainer = trainer_of(Sentences, model, losses.BatchAllTripletLoss(model), one, tmp_path)
    with pytest.raises(ValueError, match="^found one column of texts, which has no similarity scores"):
        trainer.train()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "at": ({"perturbation": AdversarialTraining.with_defaults()}, "at needs the loss of a perturbed pass"),
    "freelb": ({"perturbation": FreeLbPerturbation.with_defaults()}, "freelb needs the loss of a perturbed pass"),
    "neftune": ({"perturbation": NeftunePerturbation.with_defaults()}, "neftune needs the loss of a perturbed pass"),
    "layer": ({"perturbation": SmartPerturbation.with_defaults(level="hidden:0")}, "level 'hidden:0' with sentence-tr"),
    "places": (
        {"perturbation": SmartPerturbation.with_defaults(level=("pre_ln", "post_ln"))},
        "level 'pre_ln,post_ln'",
    ),
    "masks": ({"perturbation": SmartPerturbation.with_defaults(same_dropout=True)}, "same_dropout with sentence-trans"),
    "noise": ({"neftune_noise_alpha": 5.0}, "NEFTune draws noise in every forward"),
    "compiled": ({"torch_compile": True}, "perturbed passes of a compiled sentence-transformers model"),
    "reading": ({"task_type": "classes"}, "Sentences: task_type is 'classes'; accepted: to leave it out"),
    "groups": ({"pairwise": 2}, "Sentences: pairwise is not supported for sentence-transformers"),
    "tokens": (
        {"noise_mask": lambda batch: batch["attention_mask"]},
        "Sentences: noise_mask is not supported for sentence-transformers",
    ),
    "ascent": ({"ascent_loss": lambda output, batch: output.sum()}, "ascent_loss: smart has no ascent on a loss other"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_refused_when_the_trainer_is_made(name: str, folder: Path, tmp_path: Path) -> None:
    options, message = REFUSED[name]
    model = sentence_model(folder)
    with pytest.raises(ValueError, match=f"^{message}"):
        trainer_of(Sentences, model, losses.CosineSimilarityLoss(model), columns(labels=SCORES), tmp_path, **options)


def test_losses_and_models_that_cannot_be_had_are_refused(folder: Path, tmp_path: Path) -> None:
    model = sentence_model(folder)
    inner = losses.MultipleNegativesRankingLoss(model)
    for loss in (losses.CachedMultipleNegativesRankingLoss(model), losses.MatryoshkaLoss(model, inner, [16, 8])):
        with pytest.raises(ValueError, match=f"^{type(loss).__name__} .*accepted: losses that embed each text of a ba"):
            trainer_of(Sentences, model, loss, columns(), tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    static = st.sentence_transformer.modules.StaticEmbedding(tokenizer, embedding_dim=8)
    words = st.SentenceTransformer(modules=[static], device="cpu")
    with pytest.raises(UnsupportedLevelError, match="^SentenceTransformer holds no encoder with word embeddings"):
        trainer_of(Sentences, words, losses.CosineSimilarityLoss(words), columns(labels=SCORES), tmp_path)
    transformer, pooling = model
    router = st.sentence_transformer.modules.Router.for_query_document([transformer, pooling], [transformer, pooling])
    both = st.SentenceTransformer(modules=[router], device="cpu")
    with pytest.raises(ValueError, match="^Router encodes the columns with different modules"):
        trainer_of(
            Sentences, both, losses.CosineSimilarityLoss(both), columns(labels=SCORES), tmp_path,
            router_mapping={"first": "query", "second": "document"},
        )  # fmt: skip


def test_other_trainers_and_the_other_mixin_are_refused() -> None:
    smart = SmartPerturbation.with_defaults()
    sparse: Any = type("Own", (SentenceAdversarialMixin, st.SparseEncoderTrainer), {})
    with pytest.raises(ValueError, match="^Own: found SparseEncoderTrainer after the mixin; accepted: SentenceTransf"):
        sparse(perturbation=smart)
    plain: Any = type("Own", (SentenceAdversarialMixin, transformers.Trainer), {})
    with pytest.raises(ValueError, match="^Own: found no trainer of sentence-transformers after the mixin"):
        plain(perturbation=smart)
    wrong: Any = type("Own", (AdversarialMixin, st.CrossEncoderTrainer), {})
    with pytest.raises(ValueError, match="use SentenceAdversarialMixin"):
        wrong(perturbation=smart)
