"""Says at import which installed library lies outside the range that pyproject.toml declares and the tests cover."""

import warnings
from importlib import metadata

from packaging.requirements import Requirement


def declared() -> dict[str, Requirement]:
    """What the installed r1llama asks for, extras included, by distribution name; empty when it is not installed."""
    try:
        lines = metadata.requires("r1llama") or []
    except metadata.PackageNotFoundError:
        return {}
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def outside_range() -> list[str]:
    """One phrase such as `trl 1.20.0 (tested: <1.17,>=1.16)` for each installed library outside its range."""
    found = []
    for name, requirement in declared().items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{name} {version} (tested: {requirement.specifier})")
    return found


def check() -> None:
    """Warn once, in one line, when a library is outside its range. Never raises."""
    try:
        found = outside_range()
    except Exception:  # a broken metadata file of some other package must not break the import
        return
    if found:
        warnings.warn("r1llama is not tested with " + ", ".join(found), stacklevel=2)
