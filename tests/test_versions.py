"""The guard against untested library versions: one line, never an error, quick."""

import time
import warnings
from importlib import metadata

import pytest

from r1llama import versions


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Pretend that an r1llama with these requirements is installed: a metadata file ahead of all others."""

    def install(*requirements):
        folder = tmp_path / "r1llama-0.1.0.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", "Name: r1llama", "Version: 0.1.0"]
        folder.joinpath("METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {r}" for r in requirements), ""]))
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_silent_when_everything_fits(installed):
    installed("pytest>=1", 'packaging>=900; extra == "dev"', 'not-installed-at-all>=3; extra == "vllm"')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.check()


def test_one_line_names_each_library_its_version_and_the_range(installed):
    installed("pytest<2", 'packaging>=900; extra == "vllm"', "pyyaml>=1")
    with pytest.warns(UserWarning, match="not tested with") as caught:
        versions.check()
    (message,) = [str(warning.message) for warning in caught]
    assert "\n" not in message
    assert f"pytest {metadata.version('pytest')} (tested: <2)" in message
    assert f"packaging {metadata.version('packaging')} (tested: >=900)" in message
    assert "pyyaml" not in message


def test_local_builds_belong_to_their_release(installed, monkeypatch):
    installed("pytest<=8.0")
    monkeypatch.setattr(versions, "_version", lambda name: "8.0+cpu")
    assert versions.outside_range() == []


def test_broken_metadata_is_no_reason_to_fail(installed):
    installed("pytest >>> nonsense")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.check()


def test_it_costs_milliseconds(installed):
    installed(*(f"{name}>=0" for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "pyyaml")))
    versions.check()
    times = []
    for _ in range(5):
        start = time.process_time()
        versions.check()
        times.append(time.process_time() - start)
    assert min(times) < 0.005
