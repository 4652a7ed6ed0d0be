"""Which parameters decay, and Muon for matrices.

Muon (https://kellerjordan.github.io/posts/muon, arXiv:2502.16982) steps along the momentum `m` of a matrix, made
orthogonal: all of its singular values are moved to about 1, so that rare directions learn as fast as common ones.

    m += (1 - momentum) (gradient - m)
    weight -= lr (weight_decay weight + 0.2 sqrt(max(R, C)) orthogonalise(lerp(gradient, m, momentum)))

The factor makes the step as large as AdamW's (arXiv:2502.16982, section 2.2): one learning rate, one schedule and one
weight decay serve both. Two-dimensional weights get what `torch.optim.Muon` would do; fused experts, which it refuses,
are orthogonalised each on its own, and gate and up apart, as they are in a dense MLP.

Shapes: N matrices in a stack, each R rows by C columns.
"""

import torch
from torch import nn
from torch.optim.adamw import adamw

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic
NEWTON_SCHULZ_STEPS = 5


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: to matrices and embeddings, not to norms, biases and other vectors."""
    shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty shard
    return len(shape) >= 2 and "bias" not in name.rpartition(".")[2]


def param_groups(model: nn.Module, weight_decay: float = 0.0, muon: bool = False) -> list[dict]:
    """Every trainable parameter once, in groups as `torch.optim` takes them.

    Args:
        model: the unwrapped model. What is frozen is left out, tied weights come once, and the router's balancing
            bias, a buffer, never comes.
        weight_decay: for the parameters that [`is_decayed`] names; 0 for the rest.
        muon: split the groups further for [`Muon`].
    """
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner, _, leaf = name.rpartition(".")
        is_head = "." not in owner  # what lies beside the backbone: `lm_head`, `score`
        parts = _parts(model.get_submodule(owner), leaf) if muon and not is_head else 0
        groups.setdefault((is_decayed(name, parameter), parts), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decayed else 0.0} | ({"parts": parts} if muon else {})
        for (decayed, parts), parameters in groups.items()
    ]


def _parts(module: nn.Module, name: str) -> int:
    """Into how many matrices Muon cuts the rows of a parameter; 0 leaves it to AdamW, as embeddings and routers."""
    if isinstance(module, nn.Linear) and name == "weight":
        return 1
    # transformers' fused experts: gate above up, in the first of two tensors
    if getattr(module, "is_concatenated", False) and not module.is_transposed:
        return {"gate_up_proj": 2 if module.has_gate else 0, "down_proj": 1}.get(name, 0)
    return 0


def orthogonalise(matrices_NRC: torch.Tensor) -> torch.Tensor:
    """Each matrix with its singular values moved to about 1 (0.7 to 1.2), in bf16, by Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x = matrices_NRC.bfloat16()
    x = x.mT if is_tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Muon for the groups of matrices, AdamW for the others, in one optimizer with one learning rate.

    Args:
        groups: of [`param_groups`] with `muon=True`; `parts` of a group is into how many matrices the rows of each
            parameter are cut, or 0 for AdamW.
        lr, weight_decay: of all groups; the decay is decoupled. A group may have its own.
        momentum: of the matrices; Nesterov's.
        betas, eps: of AdamW.

    Raises:
        ValueError: groups without `parts`, or sharded parameters: a shard of a matrix cannot be orthogonalised.
    """

    def __init__(self, groups, lr=1e-3, weight_decay=0.0, momentum=0.95, betas=(0.9, 0.999), eps=1e-8):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(groups, defaults)
        for group in self.param_groups:
            if "parts" not in group:
                raise ValueError("a group lacks `parts`: make the groups with `param_groups(model, muon=True)`")
            if group["parts"] and any(hasattr(p, "device_mesh") or hasattr(p, "ds_id") for p in group["params"]):
                raise ValueError("Muon needs whole matrices, but FSDP or ZeRO shard them: use AdamW, or DDP")

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["parts"]:
                for parameter in parameters:
                    self._step_matrices(parameter, group)
            elif parameters:
                self._step_adamw(parameters, group)
        return loss

    def _step_matrices(self, parameter: torch.Tensor, group: dict) -> None:
        gradient, momentum = parameter.grad, group["momentum"]
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(buffer, momentum)
        rows, columns = update.shape[-2] // group["parts"], update.shape[-1]
        update = orthogonalise(update.reshape(-1, rows, columns)).reshape_as(parameter)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * 0.2 * max(rows, columns) ** 0.5)

    def _step_adamw(self, parameters: list[torch.Tensor], group: dict) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                zeros = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = zeros | {"step": torch.zeros(())}
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
