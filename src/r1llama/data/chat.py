"""Chat templates: how a conversation is written down for the model. Each is one Jinja file in `templates/`.

| name       | for                                                                       | its own special tokens |
|------------|---------------------------------------------------------------------------|------------------------|
| `r1llama`  | models with a tokenizer from `r1llama tokenizer` (ChatML, as Qwen, SmolLM) | 2                      |
| `llama3`   | Llama 3                                                                   | 3                      |
| `llama3.1` | Llama 3.1, 3.2, 3.3                                                       | 3                      |

All keep the thoughts of every turn, mark what the assistant writes with `{% generation %}`, so that
`assistant_only_loss: true` learns it and the end of the turn, and know `enable_thinking`. The rendered prompt is an
exact prefix of the rendered training text, token by token.
"""

import re
from pathlib import Path

from .loading import DataError

TEMPLATES = {path.stem: path for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}


def template_path(name: str) -> Path:
    """The file of a template: one of `TEMPLATES`, or a path of your own.

    Raises:
        DataError: Neither.
    """
    path = TEMPLATES.get(name, Path(name).expanduser())
    if not path.is_file():
        raise DataError(f"{name} is neither a chat template of r1llama ({', '.join(TEMPLATES)}) nor a file")
    return path


def special_tokens(template: str) -> list[str]:
    """The marks of a template, such as `<|im_end|>`, that have to be special tokens, in order of appearance."""
    return list(dict.fromkeys(re.findall(r"<\|\w+\|>", template)))
