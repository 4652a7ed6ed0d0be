"""The architecture against its peers: `python -m benchmarks.architecture [--quick] [--device cuda] [--json FILE]`.

Each section checks that both sides compute the same before it times them. `--quick` takes the smaller sizes, in less
than a minute; its figures only show that everything runs, and are not judged.

One thread, unless `--threads` says otherwise: where others use the cores too, a second thread mostly waits for the
first, at every small operation.
"""

import argparse
import dataclasses
import importlib
import json
import platform
import time
import warnings

import torch
from transformers.utils import logging

SECTIONS = ("latent", "linear", "experts", "grpo", "multi_token")


def report(package: str, sections: tuple[str, ...], description: str) -> None:
    """The command line of a package of benchmarks: prints the rows of its sections as they come.

    Args:
        package: Such as `benchmarks.architecture`; each section is a module in it with `rows(quick, device)`.
        sections: Their names.
        description: For `--help`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat, under a minute")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (bf16 and larger shapes)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections, help="run these sections")
    parser.add_argument("--json", help="write the table here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    hardware = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine()
    print(f"torch {torch.__version__}, {hardware}, {torch.get_num_threads()} threads", flush=True)
    rows = []
    for section in arguments.only:
        start = time.perf_counter()
        for row in importlib.import_module(f"{package}.{section}").rows(arguments.quick, arguments.device):
            if arguments.quick:
                row.bar = None
            rows.append({"section": section, **dataclasses.asdict(row), "verdict": row.verdict})
            bar = "" if row.bar is None else f"{'<=' if row.at_most else '>='} {row.bar:g}"
            error = "" if row.error is None else f"   difference {row.error:.1e}"
            print(
                f"{row.claim}, against {row.peer}: {row.value:.3g} {row.unit}   {bar} {row.verdict}   "
                f"{row.note}{error}",
                flush=True,
            )
        print(f"-- {section}: {time.perf_counter() - start:.0f} s", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    report("benchmarks.architecture", SECTIONS, __doc__.splitlines()[0])
