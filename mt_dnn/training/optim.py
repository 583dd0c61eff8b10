"""Optimizers, their weight-decay groups, learning-rate schedules and gradient clipping."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)

from mt_dnn.training.sharding import gathered, local_part, sharded_like

if TYPE_CHECKING:
    from mt_dnn.configuration.flag_groups import TrainingConfig

POLYNOMIAL_END = 1e-7  # the learning rate that the polynomial schedule ends at
# Numbers of a tensor that a thread updates at once: parameter, gradient, m, u and |g| of so many fit into the cache.
PIECE = 2**17


class DecoupledAdamax(torch.optim.Adamax):
    """Adamax [Kingma & Ba 2015, section 7.1] with weight decay outside the gradient [Loshchilov & Hutter 2019].

    One step: p ← p·(1 − lr·weight_decay), then m ← β₁m + (1 − β₁)g, u ← max(β₂u, |g| + eps),
    p ← p − lr/(1 − β₁ᵗ)·m/u. A parameter without gradient is left alone. The state of a parameter is `step`, `exp_avg`
    (m) and `exp_inf` (u), as in MT-DNN's checkpoints.

    On the CPU a tensor is updated piece by piece, with all operations on a piece before the next piece: memory is read
    once per step, not once per operation. The numbers equal those of torch's Adamax bit for bit.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter with a gradient; returns what `closure` returns, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if all(_goes_in_pieces(group, self.state) for group in self.param_groups):
            for group in self.param_groups:
                self._step_in_pieces(group)
        else:
            self._step_by_torch()
        return loss

    def _step_in_pieces(self, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        rate, decay = float(group["lr"]), group["weight_decay"]
        size = PIECE * torch.get_num_threads()
        scratch: dict[torch.dtype, Tensor] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"], state["exp_inf"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            corrected = rate / (1 - beta1 ** state["step"].item())
            if parameter.dtype not in scratch:
                scratch[parameter.dtype] = torch.empty(size, dtype=parameter.dtype)
            tensors = map(local_part, (parameter, parameter.grad, state["exp_avg"], state["exp_inf"]))
            for p, g, m, u in zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True):
                if decay:
                    p.mul_(1 - rate * decay)
                m.lerp_(g, 1 - beta1)
                magnitude = torch.abs(g, out=scratch[p.dtype][: len(g)]).add_(group["eps"])
                torch.maximum(u.mul_(beta2), magnitude, out=u)
                p.addcdiv_(m, u, value=-corrected)

    def _step_by_torch(self) -> None:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["weight_decay"] and parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
        try:
            # torch's Adamax would add the decay to the gradient.
            for group in self.param_groups:
                group["weight_decay"] = 0.0
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


def _goes_in_pieces(group: Mapping[str, Any], states: Mapping[Tensor, Mapping[str, Any]]) -> bool:
    """Whether all tensors of a group with a gradient are real, dense and contiguous on the CPU, without options."""
    if any(group[option] for option in ("foreach", "maximize", "differentiable", "capturable")):
        return False
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    moments = [value for p in parameters for key, value in states.get(p, {}).items() if key != "step"]
    tensors = map(local_part, [*parameters, *(parameter.grad for parameter in parameters), *moments])
    return all(
        tensor.is_cpu and tensor.layout == torch.strided and tensor.is_contiguous() and not tensor.is_complex()
        for tensor in tensors
    )


# What each optimizer stores for a parameter; the state of another optimizer is recognized by its keys.
STATE_KEYS: dict[type[Optimizer], set[str]] = {
    DecoupledAdamax: {"step", "exp_avg", "exp_inf"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.Adadelta: {"step", "square_avg", "acc_delta"},
}


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: weights with `weight_decay`, biases and the parameters of normalizations without.

    Parameters that do not require a gradient are left out. Within a group the order is that of `named_parameters`, by
    which the optimizer state of MT-DNN's checkpoints is counted.
    """
    normalizations = {
        parameter
        for module in model.modules()
        if "Norm" in type(module).__name__
        for parameter in module.parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter in normalizations or "bias" in name.rpartition(".")[2]
            (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, training: TrainingConfig) -> Optimizer:
    """The optimizer that `--optimizer` names, over the trainable parameters of `model`.

    `adamw` and `adam` are both AdamW, fused if torch supports it on the parameters' device; `adamax` is
    `DecoupledAdamax`; `sgd` has `--momentum`; `adadelta` has its paper's decay ρ = 0.95 [Zeiler 2012]. In the last two,
    weight decay is part of the gradient.
    """
    groups = decay_groups(model, training.weight_decay)
    rate = training.learning_rate
    if training.optimizer in ("adamw", "adam"):
        return torch.optim.AdamW(groups, lr=rate, eps=training.adam_eps, fused=_has_fused_adamw(groups) or None)
    if training.optimizer == "adamax":
        return DecoupledAdamax(groups, lr=rate, eps=training.adam_eps)
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=training.momentum)
    return torch.optim.Adadelta(groups, lr=rate, rho=0.95)


def _has_fused_adamw(groups: list[dict[str, Any]]) -> bool:
    """Whether torch has a fused AdamW for the devices and types of all parameters, found by a step on one number."""
    for device, dtype in {(parameter.device, parameter.dtype) for group in groups for parameter in group["params"]}:
        probe = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
        probe.grad = torch.zeros_like(probe)
        try:
            torch.optim.AdamW([probe], fused=True).step()
        except RuntimeError:
            return False
    return True


def build_schedule(
    optimizer: Optimizer, training: TrainingConfig, total_updates: int, updates_done: int = 0
) -> LambdaLR:
    """The learning rate of each update: it rises from 0 in the first `--warmup` of all updates, then `--scheduler_type`
    decides: 0 linear to 0, 1 half a cosine to 0, 2 constant, 3 polynomial of degree 1 to 1e-7.

    The rate depends only on the updates done and on their total. So `updates_done` restores the schedule of a resumed
    run, and another total lays the same schedule over the new length.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = training.learning_rate
    warmup = round(training.warmup * total_updates)
    last = updates_done - 1
    if training.scheduler_type == 0:
        return get_linear_schedule_with_warmup(optimizer, warmup, total_updates, last_epoch=last)
    if training.scheduler_type == 1:
        return get_cosine_schedule_with_warmup(optimizer, warmup, total_updates, last_epoch=last)
    if training.scheduler_type == 2:
        return get_constant_schedule_with_warmup(optimizer, warmup, last_epoch=last)
    end = min(POLYNOMIAL_END, training.learning_rate / 10)
    return get_polynomial_decay_schedule_with_warmup(optimizer, warmup, total_updates, lr_end=end, last_epoch=last)


def clip_gradients(model: nn.Module, training: TrainingConfig) -> Tensor:
    """Clip the gradients in place and return their total ℓ2 norm, a scalar.

    `--grad_clipping` bounds the norm of each tensor, then `--global_grad_clipping` that of all tensors together; 0
    switches either off. The norm returned is the one before the global clipping.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    if training.grad_clipping > 0:
        for parameter in parameters:
            _clip([parameter], training.grad_clipping)
    return _clip(parameters, training.global_grad_clipping)


def _clip(parameters: Sequence[nn.Parameter], bound: float) -> Tensor:
    """Scale gradients down if their common norm is above `bound` (0: no bound); return the norm before."""
    norm = gathered(get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))
    # torch would multiply by 1 if nothing has to be scaled. Testing first saves that pass on the CPU; on a GPU the host
    # would have to wait. With a norm that is not finite the step is skipped, so that zeros must stay zeros.
    if bound > 0 and not (norm.is_cpu and (bound / (norm + 1e-6) >= 1 or not norm.isfinite())):
        clip_grads_with_norm_(parameters, bound, norm)
    return norm


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> bool:
    """Load the state of an optimizer of the same kind over the same parameters, MT-DNN's Adamax included.

    Moments, step counts and current learning rates come from `state` (what `Optimizer.state_dict` gave); weight decay,
    eps and the other settings stay those of `optimizer`. Returns False, with nothing changed, where the kind of
    optimizer, the groups or the shapes differ.
    """
    groups, moments = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list) or not isinstance(moments, Mapping) or not _fits(optimizer, groups, moments):
        return False
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    merged = [own | {"params": saved["params"], "lr": saved["lr"]} for own, saved in zip(settings, groups, strict=True)]
    optimizer.load_state_dict({"state": _sharded_moments(optimizer, merged, moments), "param_groups": merged})
    return True


def _sharded_moments(
    optimizer: Optimizer, groups: list[dict[str, Any]], moments: Mapping[int, dict[str, Any]]
) -> dict[int, dict[str, Any]]:
    """A saved state whose moments are sharded as the optimizer's parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    owners = dict(zip((index for group in groups for index in group["params"]), parameters, strict=True))
    return {
        index: {
            key: sharded_like(value, owners[index]) if isinstance(value, Tensor) and key != "step" else value
            for key, value in moment.items()
        }
        for index, moment in moments.items()
    }


def _fits(optimizer: Optimizer, groups: list[dict[str, Any]], moments: Mapping[int, dict[str, Any]]) -> bool:
    """Whether a saved state has the groups, the keys and the shapes of `optimizer`."""
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in optimizer.param_groups]:
        return False
    saved_keys = {key for moment in moments.values() for key in moment}
    expected = STATE_KEYS[type(optimizer)]
    if saved_keys != expected and not (isinstance(optimizer, torch.optim.SGD) and not saved_keys):
        return False
    indices = [index for group in groups for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return all(
        value.shape == parameter.shape
        for index, parameter in zip(indices, parameters, strict=True)
        for key, value in moments.get(index, {}).items()
        if key != "step" and value is not None
    )
