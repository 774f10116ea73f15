"""The GitHub Action and the GitLab template, run step by step as their hosts would, and what a job sees of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
BAD = "fixtures/PA202/bad.py"
GOOD = "fixtures/PA202/good.py"
SCRIPT = ("fixtures/scripts/gpt_bf16_adamw.py", "fixtures/scripts/char_gpt.py")


class Runner:
    """What GitHub's runner is to a composite action: inputs, files for outputs, one shell per step."""

    def __init__(self, folder: Path, project: Path) -> None:
        self.folder, self.project = folder, project
        self.outputs: dict[str, dict[str, str]] = {}
        self.log: dict[str, str] = {}
        self.path: list[str] = []
        self.summary = folder / "summary.md"
        self.summary.touch()
        (folder / "temp").mkdir()

    def run(self, inputs: dict[str, str], instead: dict[str, str] | None = None) -> int:
        """The action's exit code with these inputs; `instead` gives steps another script."""
        given = {name: str(spec.get("default", "")) for name, spec in ACTION["inputs"].items()} | inputs
        assert set(given) == set(ACTION["inputs"])
        for step in ACTION["runs"]["steps"]:
            if "if" in step and not self._holds(step["if"], given):
                continue
            if "uses" in step:
                self.log[step["uses"]] = self._filled(str(step["with"]), given)
                continue
            assert step["shell"] == "bash"
            code = self._step(step, given, (instead or {}).get(step["name"], step["run"]))
            if code:
                return code
        return 0

    def _step(self, step: dict[str, Any], given: dict[str, str], script: str) -> int:
        assert "${{" not in script, "an input inside a script is code that anybody can write"
        files = {name: self.folder / f"{name}-{step['name']}" for name in ("output", "path")}
        environment = {
            **os.environ,
            **{name: self._filled(value, given) for name, value in step.get("env", {}).items()},
            "GITHUB_ACTIONS": "true",
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_OUTPUT": str(files["output"]),
            "GITHUB_PATH": str(files["path"]),
            "RUNNER_TEMP": str(self.folder / "temp"),
            "PATH": os.pathsep.join([*self.path, os.environ["PATH"]]),
        }
        for file in files.values():
            file.touch()
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script],
            cwd=self.project / self._filled(step.get("working-directory", "."), given),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        self.log[step["name"]] = done.stdout + done.stderr
        self.path = [*files["path"].read_text().split(), *self.path]
        lines = files["output"].read_text().splitlines()
        self.outputs[step.get("id", "")] = dict(line.split("=", 1) for line in lines)
        return done.returncode

    def _value(self, name: str, given: dict[str, str]) -> str:
        words = name.split(".")
        if words[0] == "inputs":
            return given[words[1]]
        if words[0] == "steps":
            return self.outputs.get(words[1], {}).get(words[3], "")
        assert name == "github.action_path"
        return str(ROOT)

    def _filled(self, text: str, given: dict[str, str]) -> str:
        return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: self._value(found[1], given), text)

    def _holds(self, condition: str, given: dict[str, str]) -> bool:
        alternatives = [re.fullmatch(r"([\w.-]+) (==|!=) '(.*)'", part) for part in condition.split(" || ")]
        return any((self._value(found[1], given) == found[3]) == (found[2] == "==") for found in alternatives if found)


INSTALLED = {
    "Install precaudit": f"""
        mkdir -p "$RUNNER_TEMP/precaudit-sarif"
        echo "{Path(sys.executable).parent}" >> "$GITHUB_PATH"
        echo "sarif=$RUNNER_TEMP/precaudit-sarif" >> "$GITHUB_OUTPUT"
    """
}


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    project = tmp_path / "project"
    for name in (BAD, GOOD, *SCRIPT):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    return Runner(tmp_path, project)


def categories(folder: Path) -> dict[str, str]:
    return {
        file.name: json.loads(file.read_text(encoding="utf-8"))["runs"][0]["automationDetails"]["id"]
        for file in sorted(folder.iterdir())
    }


def test_an_action_without_findings_passes_and_tells_the_summary(runner: Runner) -> None:
    assert runner.run({"paths": GOOD}, INSTALLED) == 0
    assert runner.summary.read_text(encoding="utf-8").count("## precaudit: no errors, no warnings") == 1
    assert runner.outputs["check"] == {"code": "0"}


def test_an_action_fails_at_the_end_with_annotations_sarif_and_one_summary_each(runner: Runner) -> None:
    inputs = {"paths": f"{BAD} {GOOD}", "trace": "fixtures/scripts/gpt_bf16_adamw.py", "upload-sarif": "true"}
    assert runner.run(inputs, INSTALLED) == 1
    assert runner.outputs["check"] == runner.outputs["trace"] == {"code": "1"}
    assert f"::error file={BAD},line=30," in runner.log["Check the source"]
    assert "::error file=fixtures/scripts/gpt_bf16_adamw.py,line=21," in runner.log["Trace the training"]
    assert "optimizer state" in runner.log["Trace the training"]
    assert runner.summary.read_text(encoding="utf-8").count("## precaudit: ") == 2
    sarif = Path(runner.outputs["install"]["sarif"])
    assert categories(sarif) == {"check.sarif": "precaudit/check/", "trace.sarif": "precaudit/trace/"}
    assert str(sarif) in runner.log["github/codeql-action/upload-sarif@v3"]


def test_an_action_whose_paths_hold_nothing_is_not_green(runner: Runner) -> None:
    (runner.project / "empty").mkdir()
    assert runner.run({"paths": "empty"}, INSTALLED) == 5


def test_every_output_of_the_action_is_one_of_a_step(runner: Runner) -> None:
    runner.run({"paths": GOOD}, INSTALLED)
    for name, spec in ACTION["outputs"].items():
        assert runner._filled(spec["value"], {}) or name == "trace-exit-code"


@pytest.mark.slow
def test_the_action_installs_itself_and_traces_with_the_python_of_the_job(runner: Runner) -> None:
    """Its environment holds no torch; the job's Python, first on PATH, has one."""
    runner.path = [str(Path(sys.executable).parent)]
    assert runner.run({"paths": BAD, "trace": "fixtures/scripts/gpt_bf16_adamw.py"}) == 1
    assert not list((runner.folder / "temp").glob("precaudit-venv/lib/*/site-packages/torch"))
    assert runner.outputs["trace"] == {"code": "1"}
    assert "PA301" in runner.log["Trace the training"]


def gitlab(tmp_path: Path, **inputs: str) -> tuple[int, str, dict[str, Any]]:
    """The template's job after GitLab has put the inputs in: exit code, log, and the job."""
    header, body = (ROOT / "templates" / "precaudit.yml").read_text(encoding="utf-8").split("\n---\n")
    spec = yaml.safe_load(header)["spec"]["inputs"]
    given = {name: one["default"] for name, one in spec.items()} | inputs
    job = yaml.safe_load(re.sub(r"\$\[\[ inputs\.([\w-]+) \]\]", lambda found: given[found[1]], body))["precaudit"]
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join(job["script"])],
        cwd=tmp_path,
        env={
            **os.environ,
            **job["variables"],
            "GITHUB_ACTIONS": "",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr, job


def test_the_gitlab_template_leaves_the_reports_that_it_names(tmp_path: Path) -> None:
    shutil.copy(ROOT / BAD, tmp_path)
    for name in SCRIPT:
        shutil.copy(ROOT / name, tmp_path)
    code, log, job = gitlab(tmp_path, paths="bad.py", trace="gpt_bf16_adamw.py")
    assert code == 1
    assert "PA202" in log
    assert "PA301" in log
    reports = job["artifacts"]["reports"]
    issues = json.loads((tmp_path / reports["codequality"]).read_text(encoding="utf-8"))
    assert "clip-before-unscale" in [issue["check_name"] for issue in issues]
    assert {issue["location"]["path"] for issue in issues} == {"bad.py"}
    assert "PA301" in (tmp_path / reports["junit"]).read_text(encoding="utf-8")


def test_the_gitlab_template_passes_where_nothing_is_wrong(tmp_path: Path) -> None:
    shutil.copy(ROOT / GOOD, tmp_path)
    code, log, job = gitlab(tmp_path)
    assert code == 0, log
    issues = json.loads((tmp_path / job["artifacts"]["reports"]["codequality"]).read_text(encoding="utf-8"))
    assert {issue["severity"] for issue in issues} <= {"info"}


def test_a_summary_that_cannot_be_written_is_one_line_and_fails_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "precaudit", "check", GOOD],
        cwd=ROOT,
        env={**os.environ, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path / "none" / "summary.md")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == (
        f"precaudit: GITHUB_STEP_SUMMARY: {tmp_path}/none/summary.md: cannot be written: No such file or directory; "
        "the report is in the log\n"
    )


def test_the_page_has_the_inputs_of_both(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE) == list(ACTION["inputs"])
    for block in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for step in re.findall(r"uses: <this repository>@.*\n\s+with:\n((?:\s{6,}.*\n?)+)", block):
            assert {line.split(":")[0].strip() for line in step.splitlines() if line.strip()} <= set(ACTION["inputs"])
    hooks = {hook["id"] for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))}
    assert set(re.findall(r"- id: (\S+)", page)) <= hooks
