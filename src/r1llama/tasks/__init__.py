"""What is asked: datasets with `prompt` and `solution`, one task a module."""
