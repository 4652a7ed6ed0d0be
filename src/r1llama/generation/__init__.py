"""How it thinks: completions of prompts."""
