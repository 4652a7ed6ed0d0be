"""How good a model is: pass@1 on a task."""
