"""How good a model is: pass@1 on a task."""

from .accuracy import Result, evaluate, wilson_interval

__all__ = ["Result", "evaluate", "wilson_interval"]
