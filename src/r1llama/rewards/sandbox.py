"""Running untrusted Python without network, without files, and with limits on everything.

`run` starts one interpreter per program (`sandbox_child` locks it in and runs it) and watches it from outside: wall
clock and output are bounded whatever happens inside. Linux only; elsewhere it refuses.
"""

import contextlib
import json
import os
import pathlib
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from typing import Any, NamedTuple


class SandboxUnavailableError(RuntimeError):
    """This system cannot isolate a program."""


class Result(NamedTuple):
    """How a program ended: `status` is "ok", "error", "timeout" or "output_limit"; `output` its standard output."""

    status: str
    output: str
    error: str
    seconds: float


_REFUSED = 97


def _visible_paths() -> list[str]:
    wanted = [sys.base_prefix, "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"]
    paths = [p for p in dict.fromkeys(wanted) if os.path.lexists(p)]
    return [p for p in paths if not any(p != q and p.startswith(q + "/") for q in paths)]


@cache
def layers(namespaces: bool = True, user: bool | None = None) -> tuple[str, ...]:
    """Return what isolates programs here: of "namespaces", "landlock", "seccomp".

    Raises:
        SandboxUnavailableError: not enough of them.
    """
    result = _start("", "", {"report": True, "namespaces": namespaces, "user": user}, timeout=30.0, output=10_000)
    if result.status != "ok":
        raise SandboxUnavailableError(
            f"cannot isolate programs on this system ({result.error or result.status}); it needs Linux with seccomp "
            "and either namespaces or Landlock. Pass unsafe=True only where the machine itself is disposable."
        )
    return tuple(json.loads(result.output))


def run(
    code: str,
    stdin: str = "",
    *,
    call: str | None = None,
    arguments: list | None = None,
    timeout: float = 5.0,
    memory: int = 512,
    output: int = 100_000,
    unsafe: bool = False,
    namespaces: bool = True,
    user: bool | None = None,
) -> Result:
    """Run a Python program.

    Args:
        code: its source; the standard library is there, installed packages are not.
        stdin: its standard input.
        call: a function of it (or method of its class `Solution`) to call with `arguments`; the result is printed as
            JSON on the last line.
        timeout: seconds of wall clock, and about as many of processor time.
        memory: megabytes of address space. Files may take 16 megabytes.
        output: bytes of standard output after which it is stopped.
        unsafe: run it even where the system cannot isolate it.
        namespaces, user: whether to use namespaces, and those of an unprivileged user; for tests of the other layers.

    Raises:
        SandboxUnavailableError: the system cannot isolate it and `unsafe` is False. Never because of `code`.
    """
    settings: dict[str, Any] = {
        "call": call, "arguments": arguments or [], "memory": memory, "unsafe": unsafe, "namespaces": namespaces,
        "user": user,
    }  # fmt: skip
    return _start(code, stdin, settings, timeout, output)


def _start(code: str, stdin: str, settings: dict[str, Any], timeout: float, output: int) -> Result:
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailableError("programs are isolated on Linux only")
    script = pathlib.Path(__file__).with_name("sandbox_child.py")
    root = tempfile.mkdtemp(prefix="r1llama-sandbox-")
    start = time.monotonic()
    source = os.memfd_create("code")
    given = os.memfd_create("stdin")
    try:
        for fd, text in ((source, code), (given, stdin)):
            with open(fd, "wb", closefd=False) as file:
                file.write(text.encode("utf-8", "replace"))
            os.lseek(fd, 0, os.SEEK_SET)
        complete = {
            "call": None, "arguments": [], "memory": 512, "unsafe": False, "namespaces": True, "user": None,
            "report": False, "root": root, "paths": _visible_paths(), "files": 16, "code": source,
            "seconds": max(1, int(timeout) + 1), **settings,
        }  # fmt: skip
        process = subprocess.Popen(
            [_interpreter(), "-I", "-S", "-B", str(script), json.dumps(complete)],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(source,),
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"},
            cwd="/",
            start_new_session=True,
        )
        try:
            status, out, err = _watch(process, start + timeout, output)
        finally:
            _kill(process)
    finally:
        os.close(source)
        os.close(given)
        shutil.rmtree(root, ignore_errors=True)
    error = err.decode("utf-8", "replace")
    if status == "ok" and process.returncode != 0:
        if process.returncode == _REFUSED and "r1llama-sandbox-refused" in error:
            raise SandboxUnavailableError(error)
        status = "error"
    return Result(status, out.decode("utf-8", "replace"), error, time.monotonic() - start)


def _interpreter() -> str:
    # The one of the base installation: a virtual environment's link may lie where the program must not look.
    return os.path.realpath(sys.executable)


def _watch(process: subprocess.Popen, deadline: float, limit: int) -> tuple[str, bytes, bytes]:
    """Read both pipes until they close, the clock runs out, or too much was written."""
    assert process.stdout is not None
    assert process.stderr is not None
    collected = {process.stdout: bytearray(), process.stderr: bytearray()}
    status = "ok"
    with selectors.DefaultSelector() as selector:
        for pipe in collected:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            events = selector.select(left) if left > 0 else []
            if not events:
                status = "timeout"
                break
            for key, _ in events:
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                collected[key.fileobj] += data  # type: ignore[index]
            if len(collected[process.stdout]) > limit or len(collected[process.stderr]) > limit:
                status = "output_limit"
                break
    if status == "ok":
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = "timeout"
    return status, bytes(collected[process.stdout][:limit]), bytes(collected[process.stderr][:limit])


def _kill(process: subprocess.Popen) -> None:
    # The leader is our child and not yet reaped where this matters, so the group is still its own.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    process.wait()
