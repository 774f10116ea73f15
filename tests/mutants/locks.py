"""The lock of each of these programs, made in a fresh Python: `python locks.py < programs.json > locks.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutants import engine


def lock(program: engine.Program) -> dict[str, object]:
    """`text` of the program's lock, the `error` that ended the program, and `told`: the roles of its findings."""

    def work() -> dict[str, object]:
        import harness

        from precaudit.contracts import lockfile
        from precaudit.contracts.precision import of_report

        ran = harness.run(path, traced=True)
        assert ran.report is not None
        told = sorted({f"{f.rule} {f.role} {f.dtype}" for f in ran.report.findings if f.severity.value != "note"})
        return {"text": lockfile.write(of_report(ran.report)), "error": ran.error, "told": told}

    with engine._folder() as folder:
        path = program.write(folder)
        made: dict[str, object] = engine.in_a_fork(work)
    return made if "text" in made else {"text": "", "error": str(made.get("crash")), "told": []}


def main() -> None:
    engine.warm()
    for name, files in json.load(sys.stdin).items():
        print(json.dumps([name, lock(engine.Program(name, files))]), flush=True)


if __name__ == "__main__":
    main()
