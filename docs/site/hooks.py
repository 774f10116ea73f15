"""What the site has beside the files of docs/: a page for each rule, the configuration, the report's schema; and the order of pages.

A new page of docs/ needs no line here: what no group names is listed under "More".
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {
    "Begin": ["start", "start.zh-CN", "install", "finds", "primer", "glossary"],
    "Use": ["trace", "frameworks", "trainers", "check", "exact", "preflight", "checkpoint", "contracts", "api", "trainers", "notebooks", "trackers", "ci", "editors", "agents", "formats", "configuration"],
    "Trust": ["performance", "reliability", "false-alarms", "mutants"],
    "How it is made": ["architecture", "style-of-messages", "messages"],
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?!https?:|#|mailto:)[^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages, then says in which order all are listed."""
    from precaudit import rulebook
    from precaudit.model.wire import Report
    from precaudit.report.rulepage import rule_markdown

    book = rulebook.load()
    made = {f"rules/{rule.id}.md": rule_markdown(rule, level=1) for rule in book.rules.values()}
    made["configuration.md"] = configuration()
    made["index.md"] = _readme()
    made["report.schema.json"] = json.dumps(Report.model_json_schema(), indent=1) + "\n"
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    pages = sorted(file.src_uri.removesuffix(".md") for file in files.documentation_pages())
    named = {page for group in GROUPS.values() for page in group}
    nav: list[Any] = [{"precaudit": "index.md"}]
    nav += [{title: [f"{page}.md" for page in group if page in pages]} for title, group in GROUPS.items()]
    nav[3:3] = [{"Rules": ["rules.md", *(f"{page}.md" for page in pages if page.startswith("rules/"))]}]
    nav[4:4] = [{"Frameworks": [f"{page}.md" for page in pages if page.startswith("frameworks/")]}]
    nav.append({"Decisions": [f"{page}.md" for page in pages if page.startswith("decisions/")]})
    left = [page for page in pages if page not in named and "/" not in page and page not in ("index", "rules")]
    config.nav = [*nav, *([{"More": [f"{page}.md" for page in left]}] if left else [])]
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The table of rules leads to their pages; a link to a file of the repository that is no page is its text."""
    if page.file.src_uri == "rules.md":
        head = markdown[: markdown.index("\n## ")]
        markdown = re.sub(r"\]\(#(pa\d+)-[^)]+\)", lambda match: f"](rules/{match[1].upper()}.md)", head)
    folder = Path(page.file.src_uri).parent

    def kept(match: re.Match[str]) -> str:
        target = match[2].partition("#")[0]
        parts: list[str] = []
        for part in (folder / target).as_posix().split("/"):
            if part == ".." and not parts:
                return match[1]  # above docs/
            parts = parts[:-1] if part == ".." else [*parts, part]
        known = files.get_file_from_path("/".join(p for p in parts if p != "."))
        return match[0] if known is not None else match[1]

    return LINK.sub(kept, markdown)


def _readme() -> str:
    """The README as the first page, its links counted from docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(\]\(|src=\")docs/", r"\1", text)
    return text.replace("](README.zh-CN.md)", "](start.zh-CN.md)")


def configuration() -> str:
    """Every key of `[tool.precaudit]` and every option of every command, from the code that reads them."""
    import click

    from precaudit import cli

    lines = ["# Configuration", "", "Settings stand in the nearest `pyproject.toml` under `[tool.precaudit]`; [check](check.md) tells of each. "
             "Under `[tool.precaudit.trace]` each option of `precaudit trace` can be set by its name.", "",
             "The JSON report has a [schema](report.schema.json).", ""]  # fmt: skip
    commands = _commands(cli.precaudit)
    for name, command in sorted(commands.items()):
        lines += [f"## precaudit {name}", "", (command.help or command.short_help or "").split("\n\n")[0].strip().replace("\b", ""), ""]
        options = [one for one in command.params if isinstance(one, click.Option)]
        if options:
            lines += ["| Option | What |", "|---|---|"]
            for one in options:
                default = one.default if one.show_default and one.default not in (None, False, ()) else None
                spelled = ", ".join(f"`{flag}`" for flag in one.opts)
                value = f" `{one.metavar or one.type.name}`" if not one.is_flag and not one.count else ""
                said = (one.help or "").replace("|", "\\|") + (f" Default: {default}." if default is not None else "")
                lines.append(f"| {spelled}{value} | {said} |")
            lines.append("")
    return "\n".join(lines)


def _commands(group: Any) -> dict[str, Any]:
    import click

    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None and not command.hidden}
