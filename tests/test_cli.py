"""The `r1llama` command only hands over."""

import importlib
import subprocess
import sys

import pytest

from r1llama import cli


@pytest.mark.parametrize("argv", [[], ["grop"]])
def test_unknown_commands_are_refused(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert "command" in capsys.readouterr().err


def test_help_lists_the_rooms_without_loading_them():
    script = (
        "import sys; from r1llama import cli\n"
        "try: cli.main(['--help'])\nfinally: assert not {'torch', 'trl'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert all(name in ended.stdout for name in cli.COMMANDS)


def test_a_room_gets_the_rest_of_the_line(capsys):
    assert cli.main(["rewards", "list"]) == 0
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_refusal_is_one_line_and_status_2(stage, capsys):
    assert cli.main([stage, "--config", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "r1llama: --config nowhere.yaml: No such file or directory"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_room_has_a_main(command):
    assert callable(importlib.import_module(cli.COMMANDS[command][0]).main)
