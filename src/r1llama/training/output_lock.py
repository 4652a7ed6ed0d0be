"""One run for one output directory."""

import fcntl
import logging
import os
import socket
from pathlib import Path

from r1llama.training.recipe import RecipeError

log = logging.getLogger("r1llama")

_held: dict[Path, object] = {}  # open files: closing one would give its lock away


def hold(output_dir: Path) -> None:
    """Lock a directory for this process's lifetime; its first process does it for the whole run.

    The lock is the system's own (POSIX, also over NFS): it ends with the process, however that ends, so none is ever
    left behind. The file beside it only says whose it is.

    Raises:
        RecipeError: Another run holds it.
    """
    path = output_dir.resolve() / "_lock"
    if path in _held or os.environ.get("RANK", "0") != "0":
        return
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise RecipeError(
            f"`output_dir: {output_dir}` is in use by {holder}: wait for it, stop it, or choose another directory"
        ) from error
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s): make sure that no other run writes there", output_dir, error.strerror)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    _held[path] = file
