"""What sharded trainers find in several processes, in one start of them; run by `test_sharded.py` under torchrun.

    torchrun --nproc_per_node 2 -m tests.mt_dnn.huggingface.sharded_trainers FOLDER JOB …

Each job runs under DistributedDataParallel and sharded, by accelerate's FSDP version 2 or while transformers loads the
model, from the same seeds. FOLDER/found.pt gets the gradients and the log of each update, and the last parameters.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
import transformers
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch import Tensor, nn
from transformers import TrainerCallback

from mt_dnn.perturbation import AdversarialTraining, FreeLbPerturbation, VatPerturbation
from tests.hf import examples, search, tiny_model, trainer_of

LENGTHS = (7, 3, 6, 5, 4, 7, 3, 5, 6, 4, 7, 2, 5, 3, 6, 7)
UPDATES = 2


def shard_on_the_cpu() -> None:
    """Let accelerate shard on the CPU, where it otherwise ignores its FSDP plugin and runs DistributedDataParallel."""
    original = AcceleratorState.__init__

    def patched(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        plugin = options.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin, self.distributed_type = plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = patched  # type: ignore[method-assign]


class Job(NamedTuple):
    """A trainer: its model and the head that says which examples it gets, its method, further options.

    loaded: transformers shards the model while it loads it from a folder.
    """

    model: Callable[[], Any]
    head: str = "classification"
    method: Callable[[], Any] = search
    options: dict[str, Any] = {}  # noqa: RUF012
    loaded: bool = False


def bert(**options: Any) -> Any:
    return tiny_model("classification", **options)


def tied_llama() -> Any:
    return tiny_model("generation", tie_word_embeddings=True)


def gpt2() -> Any:
    """Its word table is its head's, too."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=24, pad_token_id=0, resid_pdrop=0.1, embd_pdrop=0.1
    )
    return transformers.GPT2LMHeadModel(config).double().train()


def lora(head: str, targets: list[str]) -> Any:
    kind = {"classification": "SEQ_CLS", "generation": "CAUSAL_LM"}[head]
    config = peft.LoraConfig(task_type=kind, r=2, lora_dropout=0.1, target_modules=targets)
    model = peft.get_peft_model(tiny_model(head), config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.double().train()


def freelb() -> Any:
    return search(FreeLbPerturbation, k=3)


JOBS = {
    "sift": Job(bert, method=lambda: search(level="post_ln", k=2)),
    "freelb, dropout": Job(lambda: bert(dropout=0.1), method=freelb),
    "accumulated": Job(bert, options={"gradient_accumulation_steps": 2}),
    "lora, causal": Job(lambda: lora("generation", ["q_proj", "v_proj"]), "generation", freelb),
    "tied gpt2, dropout": Job(gpt2, "generation"),
    "bf16": Job(lambda: bert(dtype=torch.float32), options={"bf16": True}),
    "loaded": Job(tied_llama, "generation", loaded=True),
    "causal": Job(lambda: tiny_model("generation"), "generation"),
    "smart": Job(bert),
    "deberta": Job(bert, method=lambda: search(level="deberta")),
    "layer": Job(bert, method=lambda: search(VatPerturbation, level="hidden:0")),
    "at": Job(bert, method=lambda: search(AdversarialTraining)),
    "freelb": Job(bert, method=freelb),
    "dropout": Job(lambda: bert(dropout=0.1), method=lambda: search(level="post_ln")),
    "recomputed": Job(bert, options={"gradient_checkpointing": True}),
    "unlabeled": Job(bert, options={"unlabeled_dataset": examples("classification", LENGTHS[3:9])}),
    "tied llama": Job(tied_llama, "generation"),
    "tied, freelb": Job(tied_llama, "generation", freelb),
    "lora": Job(lambda: lora("classification", ["query", "value"])),
}
if not hasattr(transformers.PreTrainedModel, "is_distributed_loading_by_transformers"):
    # An older Trainer puts DistributedDataParallel around a model that transformers has sharded.
    del JOBS["loaded"]
QUICK = list(JOBS)[: list(JOBS).index("smart")]  # the others are among the long tests


class Recorder(TrainerCallback):
    """Keeps the gradients of each update."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.gradients.append({n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None})


def whole(tensor: Any) -> Tensor:
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    found: Tensor = full.detach().clone()
    return found


def trainer(name: str, folder: Path, **options: Any) -> Any:
    job = JOBS[name]
    size = 4 // int(os.environ.get("WORLD_SIZE", "1"))
    given = {"per_device_train_batch_size": size, "max_steps": UPDATES, "learning_rate": 0.05, **job.options, **options}
    model = given.pop("model", None) or job.model()
    return trainer_of(model, job.head, folder, job.method(), train_dataset=examples(job.head, LENGTHS), **given)


def layers(model: nn.Module) -> list[str]:
    """The class names of a model's layers, which are units of their own."""
    return sorted({type(part).__name__ for part in model.modules()} & {"BertLayer", "LlamaDecoderLayer", "GPT2Block"})


def found_by(own: Any) -> dict[str, Any]:
    recorder = Recorder()
    own.add_callback(recorder)
    own.train()
    logs = [entry for entry in own.state.log_history if "adv_loss" in entry]
    return {
        "gradients": recorder.gradients,
        "parameters": {name: whole(parameter) for name, parameter in own.model.named_parameters()},
        "logs": logs,
        "sharded": any(hasattr(parameter, "full_tensor") for parameter in own.model.parameters()),
    }


def sharded(name: str, folder: Path, **options: Any) -> Any:
    """The job's trainer, sharded."""
    job = JOBS[name]
    if not job.loaded:
        config = {"version": 2, "transformer_layer_cls_to_wrap": layers(job.model())}
        return trainer(name, folder, fsdp=True, fsdp_config=config, **options)
    from transformers.distributed import DistributedConfig

    if torch.distributed.get_rank() == 0:
        job.model().save_pretrained(folder / "model")
    torch.distributed.barrier()
    own = DistributedConfig(fsdp_size=torch.distributed.get_world_size())
    kind = type(job.model())
    model = kind.from_pretrained(folder / "model", dtype=torch.float64, distributed_config=own).train()
    return trainer(name, folder, model=model, **options)


def run(name: str, folder: Path) -> dict[str, Any]:
    """What a job finds without shards and with them."""
    os.environ.pop("ACCELERATE_USE_FSDP", None)  # which the accelerator of a sharded trainer sets
    # The reference in bfloat16 has parameters of that type, as every process has them gathered.
    model = JOBS[name].model().bfloat16() if name == "bf16" else None
    return {"ddp": found_by(trainer(name, folder, model=model)), "fsdp": found_by(sharded(name, folder))}


def resumed(folder: Path) -> dict[str, Any]:
    """A sharded trainer that goes on after its first update."""
    saves = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch"}
    found = {"whole": found_by(sharded("sift", folder / "saved", **saves))}
    own = sharded("sift", folder / "resumed", **saves)
    own.train(resume_from_checkpoint=str(folder / "saved" / "checkpoint-1"))
    found["resumed"] = {"parameters": {name: whole(x) for name, x in own.model.named_parameters()}}
    return found


def main(folder: Path, *names: str) -> None:
    shard_on_the_cpu()
    found = {name: run(name, folder) for name in names}
    found["resume"] = resumed(folder)
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / "found.pt")
    # What is left to the interpreter's end, gloo's threads or a thread of Trainer's, may abort the process.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
