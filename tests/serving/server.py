"""`r1llama serve` in a process of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

FLAGS = ("--enforce-eager", "--max-model-len", "256", "--kv-cache-memory-bytes", str(16 << 20), "--max-num-seqs", "8")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """Args:
    model: A directory.
    log: Where its output goes.
    flags: Of `r1llama serve`.
    port: None for a free one.
    """

    def __init__(self, model: Path, log: Path, *flags: str, port: int | None = None):
        self.port, self.log = port or free_port(), log
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "r1llama.cli", "serve", str(model), "--port", str(self.port), *FLAGS, *flags]
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "INFO"},  # TRL says ERROR
                start_new_session=True,  # its engine and workers end with it
            )

    def wait(self, seconds: float = 600) -> "Server":
        """Until it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return self
            except OSError:
                time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"the server did not start: {self.log.read_text()[-3000:]}")

    def signal(self, number: int) -> None:
        """To it and the processes that it started."""
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """All of its processes, whatever state they are in."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.wait()

    def post(self, path: str, **fields) -> dict:
        request = urllib.request.Request(
            self.url + path, json.dumps(fields).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return json.load(response)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error) -> None:
        self.stop()
