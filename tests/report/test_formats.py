"""Every format: that it is what its readers expect, and that no text from outside can break it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from precaudit.errors import UsageError
from precaudit.model.wire import Coverage, Finding, Report
from precaudit.report import FORMATS, render
from tests.report import samples

DATA = Path(__file__).parents[1] / "data"
REPORTS = {
    "trace": samples.trace,
    "check": samples.check,
    "clean check": samples.clean,
    "clean trace": lambda: samples.clean("trace"),
    "inconclusive": samples.inconclusive,
    "hostile": samples.hostile,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return samples.write_sources(tmp_path)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", REPORTS)
def test_every_format_shows_every_report_and_ends_its_last_line(name: str, fmt: str, root: Path) -> None:
    text = render(REPORTS[name](), fmt, root=root, width=80)
    assert text == "" or text.endswith("\n")
    assert text == render(REPORTS[name](), fmt, root=root, width=80)


@pytest.mark.parametrize("fmt", ["text", "concise", "md", "github", "html"])
def test_nothing_examined_is_inconclusive_and_never_looks_clean(fmt: str, root: Path) -> None:
    text = render(samples.inconclusive(), fmt, root=root).lower()
    assert "inconclusive: nothing was observed" in text
    assert "no errors" not in text


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_file_name_that_is_not_utf8_can_be_written_in_every_format(fmt: str, root: Path) -> None:
    report = samples.check()
    report.findings = [samples.finding("PA301", path="a\udcff.py", module="b\udcfe", message="c\udcfd")]
    assert render(report, fmt, root=root, width=80).encode("utf-8")


def test_a_command_that_failed_before_anything_was_seen_is_not_called_clean(root: Path) -> None:
    report = samples.inconclusive()
    report.status, report.exit_code = "script-failed", 7
    text = render(report, "text", root=root, width=120)
    assert "the traced command failed with exit code 7; nothing was observed until then\n" in text
    assert "0 errors" not in text


def test_an_unknown_format_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"^'srif' is not an output format; did you mean 'sarif'\?$"):
        render(samples.clean(), "srif")
    with pytest.raises(UsageError, match=r"^'x' is not an output format; allowed: text, concise, agent, json, "):
        render(samples.clean(), "x")


def test_importing_the_table_of_formats_imports_neither_rich_nor_pydantic_nor_torch() -> None:
    code = "import sys, precaudit.report; print(sorted({'rich', 'pydantic', 'torch', 'libcst'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_only_the_terminal_imports_rich() -> None:
    package = Path(__file__).parents[2] / "precaudit"
    importers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) rich\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert importers == {"report/terminal.py"}


# ---------------------------------------------------------------------------------------------- json, jsonl


def test_json_is_the_report_itself_and_reads_back_equal(root: Path) -> None:
    for make in REPORTS.values():
        assert Report.model_validate_json(render(make(), "json", root=root)) == make()


def test_json_has_the_keys_that_scripts_rely_on(root: Path) -> None:
    raw = json.loads(render(samples.trace(), "json", root=root))
    assert list(raw)[:5] == ["format_version", "tool", "command", "status", "findings"]
    promised = {
        "rule", "name", "severity", "role", "message", "path", "line", "column", "end_line", "end_column", "module",
        "dtype", "allowed", "count", "seen_by", "evidence", "fix", "fingerprint", "suppressed",
    }  # fmt: skip
    assert promised <= set(raw["findings"][0])
    assert {"role", "dtype", "tensors", "bytes", "verdict", "because"} == set(raw["roles"][0])
    assert raw["facts"] == [{"kind": "holds", "dtype": "bfloat16"}]


def test_jsonl_is_one_object_per_line_told_apart_by_type(root: Path) -> None:
    report = samples.trace()
    lines = [json.loads(line) for line in render(report, "jsonl", root=root).splitlines()]
    assert [line["type"] for line in lines] == (
        ["report"] + ["finding"] * len(report.findings) + ["role"] * len(report.roles) + ["fact"] * len(report.facts)
    )


# ---------------------------------------------------------------------------------------------- concise


def test_concise_is_one_line_per_finding_worst_first(root: Path) -> None:
    lines = render(samples.check(), "concise", root=root).splitlines()
    assert lines[0] == "train.py:10:17: PA301 error optimizer state is bfloat16 [low-precision-optimizer-state]"
    assert [line.split()[2] for line in lines[:4]] == ["error", "error", "error", "warning"]
    assert lines[4] == "3 errors, 1 warning · 1 note (-v shows it) · 48 files · next: precaudit rules PA301"


def test_notes_are_shown_only_when_asked_for(root: Path) -> None:
    assert "PA710" not in render(samples.check(), "concise", root=root)
    assert "PA710" in render(samples.check(), "concise", root=root, verbosity=1)


# ---------------------------------------------------------------------------------------------- sarif


def sarif(report: Report, root: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads(render(report, "sarif", root=root))["runs"][0]
    return run


@pytest.mark.parametrize("name", REPORTS)
def test_sarif_satisfies_the_official_schema(name: str, root: Path) -> None:
    schema = json.loads((DATA / "sarif-schema-2.1.0.json").read_text(encoding="utf-8"))
    document = json.loads(render(REPORTS[name](), "sarif", root=root))
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(document)] == []


@pytest.mark.parametrize("name", REPORTS)
def test_sarif_is_what_github_code_scanning_accepts(name: str, root: Path) -> None:
    run = sarif(REPORTS[name](), root)
    prints = []
    for result in run["results"]:
        place = result["locations"][0]["physicalLocation"]
        uri, region = place["artifactLocation"]["uri"], place["region"]
        assert not re.match(r"^([a-zA-Z][a-zA-Z0-9+.-]*:|/|\.\./)", uri)
        assert region["startLine"] == region["endLine"] >= 1
        assert 1 <= region["startColumn"] < region["endColumn"]
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        prints.append(result["partialFingerprints"]["primaryLocationLineHash"])
    assert len(prints) == len(set(prints))


def test_sarif_explains_every_rule_in_text_and_in_markdown(root: Path) -> None:
    for rule in sarif(samples.trace(), root)["tool"]["driver"]["rules"]:
        assert rule["help"]["text"]
        assert "**Wrong**" in rule["help"]["markdown"]
        assert rule["helpUri"].startswith("https://")


def test_sarif_places_are_relative_to_the_repository_and_not_to_the_working_directory(root: Path) -> None:
    project = root / "examples" / "gpt"
    project.mkdir(parents=True)
    samples.write_sources(project)
    (root / ".git").mkdir()
    places = {
        r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for r in sarif(samples.check(), project)["results"]
    }
    assert places == {"examples/gpt/train.py"}


def test_sarif_takes_a_missing_end_from_the_source_line(root: Path) -> None:
    place = sarif(samples.trace(), root)["results"][4]["locations"][0]["physicalLocation"]
    assert place["region"] == {"startLine": 11, "startColumn": 5, "endLine": 11, "endColumn": 31}


def test_sarif_marks_suppressed_findings_instead_of_dropping_them(root: Path) -> None:
    results = sarif(samples.trace(), root)["results"]
    assert [r["ruleId"] for r in results if r.get("suppressions") == [{"kind": "inSource"}]] == ["PA304"]


# ---------------------------------------------------------------------------------------------- github, gitlab, junit


def test_github_commands_are_one_escaped_line_each(root: Path) -> None:
    lines = render(samples.hostile(), "github", root=root).splitlines()
    assert len(lines) == 2
    head, _, text = lines[0].removeprefix("::").partition("::")
    assert head.startswith("error file=dir ")
    assert "b%25.py" in head
    assert head.count(",title=") == 1
    assert "%0Afix" in text


def test_github_gives_columns_only_for_one_line_regions(root: Path) -> None:
    lines = render(samples.check(), "github", root=root).splitlines()
    assert lines[0].startswith("::error file=train.py,line=10,col=17,endColumn=63,endLine=10,title=PA301 low-")
    assert all("PA710" not in line for line in lines)


def test_gitlab_issues_have_a_place_and_a_fingerprint_of_their_own(root: Path) -> None:
    report = samples.trace()
    report.findings.append(report.findings[0])
    issues = json.loads(render(report, "gitlab", root=root))
    assert len({issue["fingerprint"] for issue in issues}) == len(issues) == 13
    assert {issue["severity"] for issue in issues} == {"critical", "major", "info"}
    assert all(issue["location"]["path"] and issue["location"]["lines"]["begin"] >= 1 for issue in issues)


def test_junit_fails_for_errors_and_skips_for_warnings(root: Path) -> None:
    suite = ElementTree.fromstring(render(samples.trace(), "junit", root=root))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("12", "5", "7")
    assert len(suite.findall(".//failure")) == 5


def test_junit_of_a_clean_run_passes_and_of_nothing_examined_does_not(root: Path) -> None:
    clean = ElementTree.fromstring(render(samples.clean(), "junit", root=root))
    empty = ElementTree.fromstring(render(samples.inconclusive(), "junit", root=root))
    assert (clean.get("tests"), clean.get("errors")) == ("1", "0")
    assert (empty.get("tests"), empty.get("errors")) == ("1", "1")


# ---------------------------------------------------------------------------------------------- md, html


def test_markdown_leaves_no_tag_link_or_table_cell_of_a_hostile_name(root: Path) -> None:
    text = render(samples.hostile(), "md", root=root)
    outside_code = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text.replace("\\`", ""))
    assert "<img" not in outside_code
    assert "</script" not in outside_code
    row = next(line for line in text.splitlines() if line.startswith("| ") and "not ok" in line)
    header = next(line for line in text.splitlines() if line.startswith("| role"))
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", header))


class Tags(HTMLParser):
    VOID = {"meta", "br", "input"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", REPORTS)
def test_html_is_well_formed_and_self_contained(name: str, root: Path) -> None:
    page = Tags()
    text = render(REPORTS[name](), "html", root=root)
    page.feed(text)
    assert page.open == []
    assert not page.seen & {"script", "img", "link", "iframe", "form", "object", "font"}
    assert not {key for key, _ in page.attributes} & {"src", "srcset", "action", "data", "poster"}
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert not re.search(r"@import|url\((?!#stripes)", text)
    assert len(page.ids) == len(set(page.ids))


def test_every_link_inside_the_page_has_its_target(root: Path) -> None:
    page = Tags()
    page.feed(render(samples.trace(), "html", root=root))
    targets = [value[1:] for key, value in page.attributes if key == "href" and value and value.startswith("#")]
    assert len(targets) > 10
    assert set(targets) <= set(page.ids)


def test_the_same_finding_twice_has_two_places_to_link_to(root: Path) -> None:
    report = samples.check()
    report.findings *= 2
    page = Tags()
    page.feed(render(report, "html", root=root))
    assert len(page.ids) == len(set(page.ids))


def test_html_shows_every_finding_and_what_was_not_observed(root: Path) -> None:
    text = render(samples.trace(), "html", root=root)
    for finding in samples.trace().findings:
        assert (finding.message.replace("'", "&#x27;") in text) is not finding.suppressed
    assert "no collective ran inside the window" in text
    assert "width:13.50%" in text


def test_html_of_a_hostile_report_shows_the_text_and_runs_none_of_it(root: Path) -> None:
    text = render(samples.hostile(), "html", root=root)
    assert "<img" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;/script&gt;&lt;img src=x onerror=&quot;alert(1)&quot;&gt;[bold red]\\x1b[31m" in text


# ---------------------------------------------------------------------------------------------- docs


def test_the_docs_name_every_format_and_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page.split("## What")[0], re.MULTILINE) == list(FORMATS)
    described = set(re.findall(r"`(\w+)`", page.split("## The JSON report")[1]))
    assert {*Report.model_fields, *Finding.model_fields, *Coverage.model_fields} <= described
