"""The network: one shared encoder, one head a task."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from module.encoder import encoder_from_config
from tasks import get_task


class SANBertNetwork(nn.Module):
    """A shared encoder `bert` and the heads `scoring_list`, in the order of the tasks' ids.

    Args:
        opt: a flat mapping; `task_def_list` holds the tasks' definitions, `dropout_p` the heads' dropout where a
            definition has none. Without `encoder` it also holds the encoder's configuration (`model_type`, …).
        encoder: the shared encoder; without one, a randomly initialized one of `opt`'s architecture.
    """

    def __init__(self, opt: Mapping[str, Any], encoder: PreTrainedModel | None = None):
        super().__init__()
        self.bert = encoder_from_config(opt) if encoder is None else encoder
        self.tasks = [get_task(task_def) for task_def in opt["task_def_list"]]
        hidden_size = self.bert.config.hidden_size
        dropout_p = opt.get("dropout_p", 0.1)
        self.scoring_list = nn.ModuleList(task.build_head(hidden_size, dropout_p) for task in self.tasks)
        self._takes_types = "token_type_ids" in inspect.signature(self.bert.forward).parameters
        self._initialize_heads()

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        premise_mask: Tensor | None = None,
        hyp_mask: Tensor | None = None,
        task_id: int = 0,
    ) -> Tensor:
        """Logits of one task: (batch, tokens) → (batch, n_class).

        The premise and hypothesis masks belong to MT-DNN's call; pooled heads have no use for them.
        """
        hidden_states = self.encode(input_ids, token_type_ids, attention_mask)
        return self.tasks[task_id].logits(self.scoring_list[task_id], hidden_states)

    def encode(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """The encoder's last hidden states: (batch, tokens) → (batch, tokens, hidden)."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._takes_types:
            inputs["token_type_ids"] = token_type_ids
        return self.bert(**inputs).last_hidden_state

    def _initialize_heads(self) -> None:
        std = getattr(self.bert.config, "initializer_range", 0.02)
        for module in self.scoring_list.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
