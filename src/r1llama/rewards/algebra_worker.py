"""The process in which computer algebra runs, started by `algebra` as a script and never imported by it.

It imports math-verify once and then forks one child after another. A child answers JSON lines from stdin until its
input ends or an expression takes too long: then the kernel kills it by a timer signal, which works even while sympy
holds the interpreter, and the parent forks the next one within milliseconds.
"""

import importlib.util
import json
import logging
import os
import pathlib
import random
import resource
import signal
import sys
from functools import lru_cache

MEMORY = 2 << 30  # bytes of address space
DIGITS = 30  # of agreement between two values; 15 are not enough for 1/2^98 against 1/2^99
POINTS = 4  # random points at which two expressions with variables are compared


def load_room():
    """Import this folder as a package of its own, so that nothing else of r1llama (torch) is loaded."""
    here = pathlib.Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        "r1llama_rewards", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["r1llama_rewards"] = module
    spec.loader.exec_module(module)


load_room()
logging.disable(logging.CRITICAL)

import sympy  # noqa: E402
from math_verify import LatexExtractionConfig, parse, verify  # noqa: E402
from r1llama_rewards.grading import same_scalar, unassigned  # noqa: E402
from r1llama_rewards.structure import normalise, same_shape  # noqa: E402

_LATEX = [LatexExtractionConfig(boxed_match_priority=0)]


@lru_cache(maxsize=4096)
def parsed(text: str):
    """Return the sympy object that math-verify reads, or None."""
    found = parse(f"${text}$", extraction_config=_LATEX, fallback_mode="no_fallback", parsing_timeout=None)
    return found[0] if found else None


def same_value(answer: str, gold: str) -> bool | None:
    """Compare two scalars by algebra; also the cheap tests of `same_scalar`, which come first."""
    fast = same_scalar(answer, gold)
    if fast is not None:
        return fast
    ours, theirs = parsed(answer), parsed(gold)
    if ours is None or theirs is None:
        return False
    probed = probe(ours, theirs)
    return probed if probed is not None else bool(verify(theirs, ours, timeout_seconds=None))


def probe(ours, theirs) -> bool | None:
    """Compare numerically to many digits at random points; None where numbers cannot tell."""
    if isinstance(ours, sympy.MatrixBase) and isinstance(theirs, sympy.MatrixBase):
        if ours.shape != theirs.shape:
            return False
        return _all(probe(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, sympy.core.relational.Relational) and isinstance(theirs, sympy.core.relational.Relational):
        return _same_relation(ours, theirs)
    if not (isinstance(ours, sympy.Expr) and isinstance(theirs, sympy.Expr)):
        return None
    return _agree(ours, theirs)


def _all(results) -> bool | None:
    results = list(results)
    if False in results:
        return False
    return None if None in results else True


def _points(symbols, seed):
    draw = random.Random(seed)
    for round_ in range(POINTS):
        sign = -1 if round_ % 2 else 1  # half of the points negative: sqrt(x^2) is not x
        yield {s: sympy.Rational(sign * draw.randint(1000, 9000), draw.randint(1001, 1999)) for s in symbols}


def _number(expression, point):
    value = expression.subs(point).doit()
    if not value.is_Rational:  # those are compared exactly: 2^1000 + 1 has more digits than any float
        value = value.evalf(DIGITS + 10)
    return value if value.is_number and value.is_finite else None


def _agree(ours, theirs) -> bool | None:
    symbols = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    floats = ours.has(sympy.Float) or theirs.has(sympy.Float)
    told = 0
    for point in _points(symbols, 0):
        a, b = _number(ours, point), _number(theirs, point)
        if a is None or b is None:
            continue
        told += 1
        if a.is_Rational and b.is_Rational and not floats:
            if a != b:
                return False
            if not symbols:
                return True
            continue
        size = max(abs(a), abs(b))
        # A decimal may stand for an irrational number when six places of it are right.
        if abs(a - b) > (min(5e-7, 1e-6 * size) if floats else size * sympy.Float(10) ** -DIGITS):
            return False
        if not symbols:
            return True
    return True if told >= 2 else None


def _same_relation(ours, theirs) -> bool | None:
    """Two relations are the same when their sides differ by one constant factor, of the right sign."""
    flips = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
    a, b = ours.lhs - ours.rhs, theirs.lhs - theirs.rhs
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    ratio = None
    for point in _points(symbols, 1):
        x, y = _number(a, point), _number(b, point)
        if x is None or y is None:
            continue
        if y == 0 or x == 0:
            return False
        if ratio is not None and abs(x / y - ratio) > sympy.Float(10) ** -DIGITS * abs(ratio):
            return False
        ratio = x / y
    if ratio is None or ratio.is_real is not True:
        return None
    wanted = theirs.rel_op if ratio > 0 else flips.get(theirs.rel_op, theirs.rel_op)
    return ours.rel_op == wanted


def serve() -> None:
    """Answer requests `{"answer", "gold", "seconds"}` with `{"same"}` until the input ends."""
    say({"ready": os.getpid()})
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])  # processor time: a busy machine is no reason to die
        try:
            answer, gold = unassigned(normalise(request["answer"]), normalise(request["gold"]))
            same = same_shape(answer, gold, same_value)
            reply = {"same": bool(same), "reason": "algebra"}
        except (MemoryError, RecursionError):
            reply = {"same": False, "reason": "too_large"}
        except Exception:
            reply = {"same": False, "reason": "unparsable"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        say(reply)


def say(message: dict) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The parser builds its tables on first use: pay once here and not in every child.
    for warm in (r"\frac{\sqrt{3}}{2}x^2+\sin(x)", r"\left(1,\frac{\pi}{2}\right]", "y=2x-1", r"x\leq 3"):
        parsed(warm)
    same_value("x^2+2x+1", "(x+1)^2")
    while True:
        child = os.fork()
        if child == 0:
            serve()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
