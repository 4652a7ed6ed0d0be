"""The stages: `python -m r1llama.training.sft` and `python -m r1llama.training.grpo`, each over TRL's own trainer."""

from .callbacks import RouterBalancing

__all__ = ["RouterBalancing"]
