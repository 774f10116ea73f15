"""`make fuzz`: feeds mutated inputs to all that precaudit reads, and stops at the first that it does not take.

    python tests/fuzz --executions 100000 --seed 7 --only checkpoint

Where atheris is installed it chooses the inputs by coverage; else they are mutated seeds. An execution of more than
10 s or a process of more than 1 GiB is a failure. The input that failed is written to a file, to become a test.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from targets import TARGETS, InternalError, Target, mutated

SECONDS, MEBIBYTES = 10.0, 1024.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=100_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", choices=["", *TARGETS])
    asked = parser.parse_args()
    failed = 0
    for name, target in TARGETS.items():
        if asked.only in ("", name):
            if find_spec("atheris") and asked.only:
                return by_coverage(target, asked.executions)
            failed += not fuzz(name, target, asked.executions, asked.seed)
    return int(failed > 0)


def fuzz(name: str, target: Target, executions: int, seed: int) -> bool:
    """Runs mutated seeds, and says how it went; False, with the input in a file, where one was not taken."""
    chance, slowest, began = random.Random(seed), 0.0, time.monotonic()
    for number in range(executions):
        data = mutated(target, chance)
        if why := fails(target, data):
            path = Path(tempfile.mkdtemp(prefix="fuzz-")) / name.replace(" ", "-")
            path.write_bytes(data)
            print(f"{name}: execution {number} failed: {why}; the input is {path}", flush=True)
            return False
        slowest = max(slowest, took[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name}: {executions} executions in {time.monotonic() - began:.0f} s, the slowest {slowest:.2f} s, "
        f"at most {peak:.0f} MiB",
        flush=True,
    )
    return peak < MEBIBYTES


took = [0.0]
"""Seconds of the last execution."""


def fails(target: Target, data: bytes) -> str:
    """Why an input was not taken; "" where it was."""
    began = time.process_time()
    try:
        target.run(data)
    except InternalError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        took[0] = time.process_time() - began
    return f"{took[0]:.0f} CPU seconds" if took[0] > SECONDS else ""


def by_coverage(target: Target, executions: int) -> int:
    """Hands a kind to atheris, which ends the process itself."""
    import atheris

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-runs={executions}", "-max_len=20000"], target.run)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
