"""Which checkpoint can be trusted.

A run may be killed while it writes one. A marker is therefore written last, after every process has finished: it lists
each file with its size and is forced to disk. A checkpoint is complete if the marker exists and the files match it.
"""

import json
import os
import re
from pathlib import Path

MARKER = "complete.json"


def mark_complete(folder: Path) -> None:
    """Write the marker of a checkpoint that is fully written. Call it on one process, after a barrier."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARKER]
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    draft = folder / (MARKER + ".part")
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(sizes, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, folder / MARKER)
    directory = os.open(folder, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def why_incomplete(folder: Path) -> str | None:
    """The reason not to trust a checkpoint; None if it is complete."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"no {MARKER}: the run ended while writing it, or wrote the model only (`save_only_model`)"
    except json.JSONDecodeError:
        return f"{MARKER} is damaged"
    for name, size in sizes.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return None


def checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """`(step, folder)` of every checkpoint in a directory, complete or not, newest first."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(output_dir).glob("checkpoint-*")]
    return sorted(((int(match[1]), path) for match, path in found if match and path.is_dir()), reverse=True)


def newest_complete(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint (None if there is none), and why each newer one was passed over."""
    passed_over = []
    for _, folder in checkpoints(output_dir):
        reason = why_incomplete(folder)
        if reason is None:
            return folder, passed_over
        passed_over.append(f"{folder.name}: {reason}")
    return None, passed_over
