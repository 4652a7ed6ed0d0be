"""The README's example runs as it stands and prints what its comments say."""

import re
from pathlib import Path


def test_example(capsys):
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.split("\n")[:4] == [
        "torch.Size([1, 1, 10, 64])",
        "torch.Size([1, 1, 10, 16])",
        "[1.0]",
        "[1.0]",
    ]
