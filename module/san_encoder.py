"""An encoder without attention: word embeddings, LayerNorm, bidirectional LSTMs (MT-DNN's `EncoderModelType.SAN`).

transformers' Auto classes know it as `san`, so that its folders and checkpoints load like those of other encoders.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class SanConfig(PretrainedConfig):
    """The sizes, under the names of BERT's configuration."""

    model_type = "san"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 2,
        hidden_dropout_prob: float = 0.1,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int | None = 0,
        **options: Any,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.hidden_dropout_prob = hidden_dropout_prob
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.pad_token_id = pad_token_id
        super().__init__(**options)


class SanEmbeddings(nn.Module):
    """LayerNorm of the word vectors, then dropout: (rows, tokens) → (rows, tokens, hidden)."""

    def __init__(self, config: SanConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids)))


class SanLayer(nn.Module):
    """LayerNorm(x + max of the LSTMs of both directions), (rows, tokens, hidden); the LSTMs skip padding."""

    def __init__(self, config: SanConfig):
        super().__init__()
        self.rnn = nn.LSTM(config.hidden_size, config.hidden_size, bidirectional=True, batch_first=True)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """One layer.

        Args:
            states: (rows, tokens, hidden), padded on the right.
            lengths: number of real tokens of each row, (rows,), on the CPU.
        """
        packed: PackedSequence = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=states.size(1))
        forwards, backwards = output.chunk(2, dim=-1)
        return self.LayerNorm(states + self.dropout(torch.maximum(forwards, backwards)))


class SanModel(PreTrainedModel):
    """The encoder, with the call of transformers' encoders; padding must be on the right."""

    config_class = SanConfig
    base_model_prefix = "san"

    def __init__(self, config: SanConfig):
        super().__init__(config)
        self.embeddings = SanEmbeddings(config)
        self.layer = nn.ModuleList(SanLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    @classmethod
    def over(cls, encoder: PreTrainedModel, dropout_p: float) -> SanModel:
        """Randomly initialized LSTMs, as many as the encoder has layers, over a copy of its word embeddings.

        The LayerNorm of the embedding block is copied too, if there is one and it has the same size.
        """
        words: Any = encoder.get_input_embeddings()
        size, vocabulary = words.weight.size(1), words.weight.size(0)
        config = encoder.config
        model = cls(
            SanConfig(
                vocab_size=vocabulary,
                hidden_size=size,
                num_hidden_layers=config.num_hidden_layers,
                hidden_dropout_prob=dropout_p,
                layer_norm_eps=getattr(config, "layer_norm_eps", 1e-12),
                pad_token_id=getattr(config, "pad_token_id", None),
            )
        )
        norm = _norm_after(encoder, words)
        with torch.no_grad():
            model.embeddings.word_embeddings.weight.copy_(words.weight)
            if isinstance(norm, nn.LayerNorm) and norm.weight.size(0) == size:
                model.embeddings.LayerNorm.load_state_dict(norm.state_dict())
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings.word_embeddings = value

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.LSTM):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False
    ) -> BaseModelOutput:
        """`last_hidden_state`, (rows, tokens, hidden); with `output_hidden_states` also all others."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        lengths = mask.sum(1).clamp(min=1).cpu()
        states = [self.embeddings(input_ids)]
        for layer in self.layer:
            states.append(layer(states[-1], lengths))
        return BaseModelOutput(states[-1], tuple(states) if output_hidden_states else None)


AutoConfig.register(SanConfig.model_type, SanConfig)
AutoModel.register(SanConfig, SanModel)


def _norm_after(encoder: nn.Module, words: nn.Module) -> nn.Module | None:
    """The LayerNorm of the block that contains the word embeddings but no layers; None if there is no such block."""
    block = next((module for module in encoder.modules() if any(child is words for child in module.children())), None)
    parts = [] if block is None else list(block.children())
    norms = [part for part in parts if isinstance(part, nn.LayerNorm)]
    return norms[0] if len(norms) == 1 and not any(isinstance(part, nn.ModuleList) for part in parts) else None
