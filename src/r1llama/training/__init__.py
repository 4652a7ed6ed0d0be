"""The stages: `python -m r1llama.training.sft` and `python -m r1llama.training.grpo`, each over TRL's own trainer."""

from .callbacks import AuxiliaryLosses, RouterBalancing
from .optimizers import Muon, param_groups

__all__ = ["AuxiliaryLosses", "Muon", "RouterBalancing", "param_groups"]
