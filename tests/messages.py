"""What every rule says of real programs, as one page: docs/messages.md. `python tests/messages.py` writes it anew."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "messages.md"
HEAD = """\
# What each rule says

Every message, cause, fix and case of a why that the fixtures bring forth, printed by the program, compared by tests;
`python tests/messages.py` writes this page. How a message is written: [style of messages](style-of-messages.md).
"""
ROW = re.compile(r"^- \*(\w+)\*, `([^`]+)`: ((?:.+\n)+)", re.MULTILINE)


class Said(NamedTuple):
    """One way in which a rule speaks, and the script that brings it forth."""

    witness: str
    script: str
    text: str


def said(finding: Mapping[str, Any], witness: str, script: Path) -> Said:
    """A finding's words as the page has them."""
    lines = [" ".join(finding["message"].split())]
    cause = finding["cause"]
    for label, words in (("cause", cause and cause["text"]), ("fix", finding["fix"]), ("why", finding["why"])):
        if words:
            lines.append(f"  - {label}: {' '.join(words.split())}")
    return Said(
        witness, f"{script.parent.name}/{script.name}", "\n".join(line.replace("|", "\\|") for line in lines) + "\n"
    )


def own(report: Iterable[Mapping[str, Any]], witness: str, script: Path) -> list[Said]:
    """What the rule that a fixture is named for says of it."""
    return [said(f, witness, script) for f in report if f["rule"] == script.parent.name and not f["suppressed"]]


def key(text: str) -> str:
    """The words alone: numbers differ between machines."""
    return re.sub(r"\d[\d.,e+-]*", "N", text)


def shown() -> list[Said]:
    """What stands in the page."""
    return [Said(*match) for match in ROW.findall(PAGE.read_text(encoding="utf-8"))]


@cache
def by_check() -> Mapping[str, list[Mapping[str, Any]]]:
    """What `precaudit check fixtures` finds in each script."""
    search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "precaudit", "check", "--output-format", "json", "--no-cache", "fixtures"]
    environment = {**os.environ, "PYTHONPATH": search}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    found: dict[str, list[Mapping[str, Any]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        found.setdefault(finding["path"], []).append(finding)
    return found


def of_check() -> list[Said]:
    """What each rule says of its own wrong scripts, read and not run."""
    return [
        one
        for path, findings in sorted(by_check().items())
        if Path(path).name.startswith("bad")
        for one in own(findings, "check", Path(path))
    ]


def written(rows: Iterable[Said]) -> str:
    """The page: each way to speak once, under its rule, with the first script that brings it forth."""
    from precaudit import rulebook

    lines = [HEAD]
    seen: set[tuple[str, str]] = set()
    rows = list(rows)
    for rule in rulebook.load().rules.values():
        mine = [row for row in rows if row.script.partition("/")[0] == rule.id]
        if mine:
            anchor = f"{rule.id}-{rule.name}".lower()
            lines.append(f"## [{rule.id} {rule.name}](rules.md#{anchor})\n")
        for row in mine:
            if (rule.id, key(row.text)) not in seen:
                seen.add((rule.id, key(row.text)))
                lines.append(f"- *{row.witness}*, `{row.script}`: {row.text}")
    return "\n".join(lines)


def differences(rows: Iterable[Said], witness: str, script: str) -> list[str]:
    """What a script says and the page does not have, and what the page has of it and it does not say."""
    now = {key(row.text) for row in rows}
    rule = script.partition("/")[0]
    page = [row for row in shown() if row.script.partition("/")[0] == rule]
    lacking = now - {key(row.text) for row in page}
    stale = {key(row.text) for row in page if (row.witness, row.script) == (witness, script)} - now
    return [*(f"not in docs/messages.md: {text}" for text in lacking), *(f"no longer said: {text}" for text in stale)]


def main() -> None:
    import harness

    sys.path.insert(0, str(ROOT / "tests" / "trace"))
    import test_fixtures

    rows = of_check()
    for script in test_fixtures.WRONG:
        if script.parent.name.startswith("PA"):
            report = harness.trace(script, test_fixtures.argv(script))
            rows += own([f.model_dump(mode="json") for f in report.findings], "trace", script)
    PAGE.write_text(written(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
