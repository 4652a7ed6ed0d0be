"""A checkpoint is complete or it does not exist.

It is written into `output_dir/_unfinished/`, then each file and directory is forced to disk, then a marker with the
size and SHA-256 of every file is added, and only then does one rename make it `output_dir/checkpoint-N`. Nothing is
loaded from a checkpoint before its marker has been checked, file by file, so that what a flipped bit or a torn copy
left behind never reaches the unpickler.

A digest finds accidents, not attackers: whoever can rewrite a file can rewrite the marker. Against them stands that
transformers loads optimizer, schedule and random states with `weights_only=True`, which runs no code. DeepSpeed does
not: resume its checkpoints only from storage that you trust.
"""

import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MARKER = "complete.json"
DRAFTS = "_unfinished"  # pushes to the hub leave out names with this first letter
MODEL_HEADS = ("config.json", "adapter_config.json")  # what makes a directory a model to `from_pretrained`
MODEL_FILES = ("model*.safetensors*", "adapter_model.*", "pytorch_model*")
DIGEST_THREADS = 8


def replace_text(path: Path, text: str) -> None:
    """Write a text file that is, at any moment, the old one or the new one."""
    draft = path.with_name(path.name + ".part")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def publish(draft: Path, folder: Path, about: dict) -> None:
    """Make a fully written draft the checkpoint `folder`. Call it on one process, after a barrier.

    Args:
        draft: Directory on the same file system.
        folder: Where it appears; what lies there under this name is set aside.
        about: What else the marker says, such as `step`.
    """
    files = _files(draft)
    with ThreadPoolExecutor(DIGEST_THREADS) as pool:
        digests = list(pool.map(lambda path: _digest(path, sync=True), files))
    entries = {
        str(path.relative_to(draft)): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, digests, strict=True)
    }
    replace_text(draft / MARKER, json.dumps(about | {"files": entries}, indent=1))
    for directory in [draft, *(path for path in draft.rglob("*") if path.is_dir())]:
        _sync_directory(directory)
    if folder.exists():
        set_aside(folder)
    os.rename(draft, folder)
    _sync_directory(folder.parent)


def publish_model(draft: Path, folder: Path) -> None:
    """Move a fully written model into `folder`, which holds other things too. Its config comes last, and an old one
    goes first: cut short, the directory is no model at all rather than half of one."""
    for path in _files(draft):
        _digest(path, sync=True)
    new = sorted(draft.iterdir(), key=lambda path: (path.name in MODEL_HEADS, path.name))
    for name in MODEL_HEADS:
        (folder / name).unlink(missing_ok=True)
    _sync_directory(folder)
    for stale in {path for pattern in MODEL_FILES for path in folder.glob(pattern)} - {folder / p.name for p in new}:
        stale.unlink()
    for path in new:
        if (folder / path.name).is_dir():
            shutil.rmtree(folder / path.name)
        if path.name in MODEL_HEADS:
            _sync_directory(folder)
        os.replace(path, folder / path.name)
    _sync_directory(folder)
    shutil.rmtree(draft)


def about(folder: Path) -> dict:
    """What the marker of a complete checkpoint says."""
    return json.loads((folder / MARKER).read_text(encoding="utf-8"))


def why_incomplete(folder: Path, digests: bool = True) -> str | None:
    """The reason not to trust a checkpoint; None if it is complete.

    Args:
        folder: The checkpoint.
        digests: False to compare sizes only.
    """
    try:
        marker = about(folder)
        files = {folder / name: (entry["bytes"], entry["sha256"]) for name, entry in marker["files"].items()}
    except FileNotFoundError:
        return f"no {MARKER}: it was not written by a stage of r1llama, or by an older one"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MARKER} is damaged, or of an older r1llama"
    for path, (size, _) in files.items():
        name = path.relative_to(folder)
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    if digests:
        with ThreadPoolExecutor(DIGEST_THREADS) as pool:
            for path, found in zip(files, pool.map(_digest, files), strict=True):
                if found != files[path][1]:
                    return f"{path.relative_to(folder)} is damaged: its bytes are not those that were written"
    return None


def why_unusable(folder: Path) -> str | None:
    """The reason not to resume from a checkpoint; None if there is none."""
    reason = why_incomplete(folder)
    if reason is None and about(folder).get("model_only"):
        return "it holds the model only (`save_only_model`)"
    return reason


def checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """`(step, folder)` of every checkpoint in a directory, complete or not, newest first."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(output_dir).glob("checkpoint-*")]
    return sorted(((int(match[1]), path) for match, path in found if match and path.is_dir()), reverse=True)


def newest_complete(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint (None if there is none), and why each newer one was passed over."""
    passed_over = []
    for _, folder in checkpoints(output_dir):
        reason = why_unusable(folder)
        if reason is None:
            return folder, passed_over
        passed_over.append(f"{folder.name}: {reason}")
    return None, passed_over


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint so that no run resumes from it; one that was set aside before gives way."""
    aside = folder.with_name(f"{folder.name}.aside")
    if aside.exists():
        shutil.rmtree(aside)
    os.rename(folder, aside)
    return aside


def remove(folder: Path) -> None:
    """Delete a checkpoint: it vanishes at once, and its files after that."""
    doomed = folder.parent / DRAFTS / f"{folder.name}.removed"
    doomed.parent.mkdir(exist_ok=True)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path, sync: bool = False) -> str:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_directory(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
