"""The network: one shared encoder and one head per task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import PreTrainedModel

from module.dropout_wrapper import DropoutWrapper
from module.encoder import encoder_from_config, takes_types
from module.san import AnswerOptions
from tasks import ModelInputs, get_task, needs_decoder

if TYPE_CHECKING:
    from mt_dnn.batcher import Batch


class SANBertNetwork(nn.Module):
    """A shared encoder `bert` and the heads `scoring_list`, in the order of the task ids.

    Args:
        opt: a flat mapping. `task_def_list`: the tasks' definitions; `dropout_p`: dropout of heads whose definition has
            none; `answer_opt`: whether `enable_san` takes effect; the flags of `AnswerOptions`, for such heads; other
            flags, for the tasks that read them. Without `encoder` also the encoder's configuration (`model_type`, …).
        encoder: the shared encoder; by default a randomly initialized one of the architecture in `opt`.
    """

    def __init__(self, opt: Mapping[str, Any], encoder: PreTrainedModel | None = None):
        super().__init__()
        if encoder is None:
            encoder = encoder_from_config(opt, with_decoder=needs_decoder(opt["task_def_list"]))
        self.bert = encoder
        flags = {**self.bert.config.to_dict(), **opt}
        self.tasks = [get_task(task_def, flags) for task_def in opt["task_def_list"]]
        hidden_size = self.bert.config.hidden_size
        dropout_p = opt.get("dropout_p", 0.1)
        answer = AnswerOptions.from_flat(opt)
        self.scoring_list = nn.ModuleList(
            task.build_answer_network(hidden_size, answer)
            if task.has_answer_network
            else task.build_head(hidden_size, dropout_p)
            for task in self.tasks
        )
        for module in self.scoring_list.modules():
            if isinstance(module, DropoutWrapper):
                module.variational = answer.vb_dropout
        self._takes_types = takes_types(self.encoder)
        self._initialize_heads()

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        premise_mask: Tensor | None = None,
        hyp_mask: Tensor | None = None,
        task_id: int = 0,
        y_input_ids: Tensor | None = None,
    ) -> Any:
        """Logits of one task, in the form of its type: (batch, tokens) → (batch, n_class) for classification.

        The arguments are in the order of MT-DNN's call.

        Args:
            input_ids, token_type_ids, attention_mask: (batch, tokens).
            premise_mask, hyp_mask: (batch, tokens), 1 at tokens that do not belong to the premise or the hypothesis.
            task_id: the task.
            y_input_ids: (batch, target tokens), the tokens to generate.
        """
        inputs = ModelInputs(input_ids, token_type_ids, attention_mask, premise_mask, hyp_mask, y_input_ids)
        return self.tasks[task_id].forward(self, self.scoring_list[task_id], inputs)

    def run(self, batch: Batch) -> Any:
        """Logits of a batch."""
        return self(
            batch.input_ids,
            batch.token_type_ids,
            batch.attention_mask,
            task_id=batch.task_id,
            y_input_ids=self.tasks[batch.task_id].y_input_ids(batch),
        )

    @property
    def encoder(self) -> PreTrainedModel:
        """The module that reads the input, where noise enters: `bert`, or the encoder of an encoder-decoder."""
        return self.bert.get_encoder() if self.bert.config.is_encoder_decoder else self.bert

    def encode(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """The encoder's last hidden states: (batch, tokens) → (batch, tokens, hidden)."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._takes_types:
            inputs["token_type_ids"] = token_type_ids
        return self.encoder(**inputs).last_hidden_state

    def _initialize_heads(self) -> None:
        std = getattr(self.bert.config, "initializer_range", 0.02)
        for module in self.scoring_list.modules():
            # A weight under weight_norm is recomputed from its parts, which keep torch's initialization.
            if isinstance(module, nn.Linear) and not is_parametrized(module):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
