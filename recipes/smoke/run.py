"""Run the smoke size of every recipe, each after those whose output it reads, and print what came of it.

python recipes/smoke/run.py [FOLDER ...] [--keep]
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from graphlib import TopologicalSorter
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
OFFLINE = {"HF_HUB_OFFLINE": "1"}


def find(folders: list[str]) -> dict[Path, dict]:
    """The recipes that have a smoke size, with the values it runs with."""
    found = {}
    for path in sorted(ROOT.glob("recipes/*/*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "smoke" in values and (not folders or path.parent.name in folders):
            smoke = values.pop("smoke")
            found[path] = values | {"output_dir": f"{values.get('output_dir')}-smoke"} | smoke
    return found


def in_order(recipes: dict[Path, dict]) -> list[Path]:
    """Sorted so that each comes after those whose `output_dir` one of its values names."""
    graph = {
        path: [
            other
            for other, those in recipes.items()
            if other != path and any(is_inside(value, those["output_dir"]) for value in values.values())
        ]
        for path, values in recipes.items()
    }
    return list(TopologicalSorter(graph).static_order())


def is_inside(value, folder: str) -> bool:
    if isinstance(value, list | dict):
        return any(is_inside(v, folder) for v in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and Path(folder) in (Path(value), *Path(value).parents)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", help="only these, such as spongebob-29m")
    parser.add_argument("--keep", action="store_true", help="continue earlier runs instead of starting over")
    args = parser.parse_args()
    recipes = find(args.folders)
    failed, begin = [], time.perf_counter()
    for path in in_order(recipes):
        name = str(path.relative_to(ROOT))
        output = ROOT / recipes[path]["output_dir"]
        if not args.keep:
            shutil.rmtree(output, ignore_errors=True)
        start = time.perf_counter()
        command = [sys.executable, "-m", "r1llama.cli", path.stem.partition("_")[0], "--config", name, "--smoke"]
        ended = subprocess.run(command, cwd=ROOT, env=os.environ | OFFLINE, capture_output=True, text=True)
        print(
            f"{'ok' if ended.returncode == 0 else 'FAILED':8}{time.perf_counter() - start:6.1f} s  {name}", flush=True
        )
        if ended.returncode:
            failed.append(name)
            print("\n".join(ended.stderr.splitlines()[-20:]))
    print(f"{len(recipes) - len(failed)} of {len(recipes)} in {time.perf_counter() - begin:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
