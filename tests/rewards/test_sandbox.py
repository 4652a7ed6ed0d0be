"""Programs in the sandbox compute, and nothing else: every way out is closed, and the reward says what happened."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from r1llama.rewards import get_reward, sandbox

try:
    sandbox.layers()
except sandbox.SandboxUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

LAYERS = {"as it is": {}, "unprivileged": {"user": True}, "without namespaces": {"namespaces": False}}


@pytest.fixture(params=LAYERS, ids=str)
def run(request):
    settings = LAYERS[request.param]
    try:
        sandbox.layers(settings.get("namespaces", True), settings.get("user"))
    except sandbox.SandboxUnavailableError as error:
        pytest.skip(str(error))
    if settings.get("user") and "namespaces" not in sandbox.layers(True, True):
        pytest.skip("no user namespaces here")
    return lambda code, **kwargs: sandbox.run(code, timeout=kwargs.pop("timeout", 3.0), **settings, **kwargs)


def test_a_program_reads_and_prints(run):
    code = "import sys, math, collections\nprint(sum(map(int, sys.stdin.read().split())))"
    assert run(code, stdin="1 2\n3")[:2] == ("ok", "6\n")


def test_a_function_is_called(run):
    code = "class Solution:\n    def add(self, a, b):\n        print('noise')\n        return a + b"
    assert run(code, call="add", arguments=[1, 2]).output.endswith("\n3")


@pytest.fixture
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "gold.txt"
    path.write_text("gold")
    os.chmod(path.parent, 0o755)
    return path


# ruff: noqa: E501
ESCAPES = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork once": "import os\nif os.fork() == 0: os._exit(0)\nprint('escaped')",
    "raw clone": "import ctypes\nr = ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0)\nprint('escaped' if r >= 0 else 'no')",
    "shell": "import os\nprint('escaped' if os.system('true') == 0 else 'no')",
    "subprocess": "import subprocess\nsubprocess.run(['/bin/true'])\nprint('escaped')",
    "exec": "import os\nos.execv('/bin/echo', ['echo', 'escaped'])",
    "network": "import socket\nsocket.socket()\nprint('escaped')",
    "unix socket": "import socket\nsocket.socketpair()\nprint('escaped')",
    "passwd": "print('escaped', open('/etc/passwd').read())",
    "proc": "print('escaped', open('/proc/1/cmdline').read())",
    "proc self environ": "print('escaped', open('/proc/self/environ').read())",
    "list home": "import os\nprint('escaped', os.listdir(os.path.expanduser('~root')))",
    "write outside": "open('/usr/x', 'w')\nprint('escaped')",
    "write interpreter": "import sys\nopen(sys.executable, 'ab')\nprint('escaped')",
    "symlink": "import os\nos.symlink('/etc/passwd', 'x')\nprint('escaped', open('x').read())",
    "dot dot": "print('escaped', open('../' * 20 + 'etc/passwd').read())",
    "kill parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nprint('escaped')",
    "kill all": "import os, signal\nos.kill(-1, signal.SIGKILL)\nprint('escaped')",
    "ptrace": "import ctypes\nr = ctypes.CDLL(None).ptrace(0, 0, 0, 0)\nprint('escaped' if r == 0 else 'no')",
    "mount": "import ctypes\nr = ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None)\nprint('escaped' if r == 0 else 'no')",
    "new namespace": "import ctypes\nr = ctypes.CDLL(None).unshare(0x10000000)\nprint('escaped' if r == 0 else 'no')",
    "become root": "import os\nos.setuid(0)\nos.listdir('/root')\nprint('escaped')",
    "raise limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (999, 999))\nprint('escaped')",
    "device": "print('escaped', open('/dev/mem', 'rb').read(1))",
    "big file": "f = open('x', 'wb')\nfor _ in range(100): f.write(b'x' * 2**20); f.flush()\nprint('escaped')",
    "memory bomb": "x = []\nwhile True: x.append(bytearray(2**24))",
    "endless loop": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "infinite output": "while True: print('x' * 10000)",
    "infinite errors": "import sys\nwhile True: sys.stderr.write('x' * 10000)",
    "thread bomb": "import threading, time\nfor _ in range(10000): threading.Thread(target=time.sleep, args=(9,)).start()\nprint('escaped')",
    "recursion": "def f(): return f()\nf()\nprint('escaped')",
    "crash": "import ctypes\nctypes.string_at(0)\nprint('escaped')",
    "close pipes": "import os\nos.close(1)\nos.close(2)\nwhile True: pass",
    "ignore signals": "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass",
    "syntax": "def",
    "nul": "x = '\x00'",
    "surrogate": "x = '\ud800'\nraise SystemExit(3)",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_no_escape(run, name):
    start, threads = time.monotonic(), threading.active_count()
    result = run(ESCAPES[name], timeout=0.6)
    assert time.monotonic() - start < 2.0
    assert "escaped" not in result.output
    assert len(result.output) <= 100_000
    assert threading.active_count() == threads


def test_files_outside_cannot_be_read(run, secret):
    assert run(f"print(open({str(secret)!r}).read())").status == "error"


def test_the_environment_is_empty(run, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "gold")
    assert "gold" not in run("import os\nprint(dict(os.environ))").output


def test_nothing_is_left_behind(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other tests run at the same time, in the usual place
    assert run("open('left', 'w').write('x')\nprint('written')").output == "written\n"
    run("while True: pass", timeout=0.5)
    assert not list(tmp_path.glob("r1llama-sandbox-*"))


TESTS = {"language": "python", "test_cases": [{"input": "1 2", "output": "3"}, {"input": "5 5", "output": "10\n"},
                                              {"input": "0 0", "output": "1"}, {"input": "1 1", "output": "2\n2"}]}  # fmt: skip


def test_code_reward_pays_per_test():
    adds = "```python\nprint(sum(map(int, input().split())))\n```"
    reward = get_reward("code")
    logged = {}
    values = reward([adds, "no code", "```python\n1/0\n```"], [TESTS] * 3, log_extra=logged.__setitem__)
    assert values == [0.5, 0.0, 0.0]  # the last test has a second line: zip-truncation would pass it
    assert logged["code/status"][0] == "passed passed wrong wrong"
    assert get_reward({"name": "code", "partial": False})([adds], [TESTS]) == [0.0]
    assert reward([adds], [{"test_cases": []}]) == [None]


def test_code_reward_calls_functions_and_compares_outside():
    info = {
        "test_cases": [{"fn_name": "f", "input": "[2]", "output": "4"}, {"fn_name": "f", "input": [3], "output": 9}]
    }
    right = "```python\ndef f(x):\n    return x * x\n```"
    fake = "```python\nclass Same:\n    __eq__ = lambda a, b: True\ndef f(x):\n    return Same()\n```"
    leave = "```python\nimport os\ndef f(x):\n    os._exit(0)\n```"
    boolean = "```python\ndef f(x):\n    return True\n```"
    assert get_reward("code")([right, fake, leave, boolean], [info] * 4) == [1.0, 0.0, 0.0, 0.0]


def test_code_in_unfinished_thoughts_is_no_answer():
    assert get_reward("code")(["<think>```python\nprint(3)\n```"], [TESTS]) == [0.0]


# As root, the same escapes once more in a process that has become nobody.
NOBODY = 65534
# What is stopped by a clock or a limit of its own process is stopped alike for everybody.
CLOCKED = {"endless loop", "sleep", "ignore signals", "close pipes", "infinite output", "infinite errors",
           "thread bomb", "memory bomb", "recursion", "fork bomb"}  # fmt: skip
PROGRAM = """
import importlib.util, json, os, sys
here = sys.argv[1]
spec = importlib.util.spec_from_file_location("room", here + "/__init__.py", submodule_search_locations=[here])
sys.modules["room"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from room import get_reward, sandbox
escapes, tests = json.load(sys.stdin)
outputs = {name: sandbox.run(code, timeout=3.0).output for name, code in escapes.items()}
paid = get_reward("code")(["```python\\nprint(sum(map(int, input().split())))\\n```"], [tests])
print(json.dumps([os.getuid(), sandbox.layers(), outputs, paid]))
"""


@pytest.fixture
def as_nobody():
    if os.getuid() != 0:
        pytest.skip("only root can become nobody")
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o777)
    room = pathlib.Path(folder) / "room"
    shutil.copytree(pathlib.Path(sandbox.__file__).parent, room, ignore=shutil.ignore_patterns("__pycache__"))

    def run(python, *arguments, **kwargs):
        command, environment = [python, *arguments], {"TMPDIR": folder}
        return subprocess.run(
            command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", env=environment, text=True,
            capture_output=True, check=False, **kwargs,
        )  # fmt: skip

    def can_run(python):
        try:
            return run(python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))").returncode == 0
        except OSError:
            return False

    # A virtual environment below /root is closed to others: then the system's own interpreter has to do.
    python = next(filter(can_run, (sys.executable, "/usr/bin/python3")), None)
    if python is None:
        pytest.skip("nobody can run no interpreter here")
    yield lambda text: run(python, "-B", "-c", PROGRAM, str(room), input=text)
    shutil.rmtree(folder)


def test_nobody_is_confined_too(as_nobody):
    escapes = {name: code for name, code in ESCAPES.items() if name not in CLOCKED and code.isascii()}
    done = as_nobody(json.dumps([escapes, {"test_cases": [{"input": "1 2", "output": "3"}]}]))
    if "SandboxUnavailableError" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    uid, layers, outputs, paid = json.loads(done.stdout)
    assert uid == NOBODY
    assert "seccomp" in layers
    assert {name: output for name, output in outputs.items() if "escaped" in output} == {}
    assert paid == [1.0]
