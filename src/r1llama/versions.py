"""Says at import which installed library lies outside the range that pyproject.toml declares and the tests cover."""

import re
import warnings
from importlib import metadata

from packaging.requirements import Requirement


def declared() -> dict[str, Requirement]:
    """What the installed r1llama asks for, by distribution name: with the extras, without the development tools."""
    try:
        lines = metadata.requires("r1llama") or []
    except metadata.PackageNotFoundError:
        return {}
    return {r.name: r for r in map(Requirement, lines) if 'extra == "dev"' not in str(r.marker)}


def outside_range() -> list[str]:
    """One phrase such as `trl 1.20.0 (tested: <1.17,>=1.16)` for each installed library outside its range."""
    found = []
    for name, requirement in declared().items():
        try:
            version = _version(name)
        except metadata.PackageNotFoundError:
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{name} {version} (tested: {requirement.specifier})")
    return found


def _version(name: str) -> str:
    """As `metadata.version`, several times faster: it would parse the whole page that the file also holds."""
    installed = metadata.distribution(name)
    text = installed.read_text("METADATA") or installed.read_text("PKG-INFO")
    return re.search(r"^Version: *(\S+)", text, re.MULTILINE)[1]


def check() -> None:
    """Warn once, in one line, when a library is outside its range. Never raises."""
    try:
        found = outside_range()
    except Exception:  # a broken metadata file of some other package must not break the import
        return
    if found:
        warnings.warn("r1llama is not tested with " + ", ".join(found), stacklevel=2)
