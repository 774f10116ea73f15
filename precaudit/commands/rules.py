"""`precaudit rules`: the rule table, or one rule's page."""

from __future__ import annotations

import json
import os
import shutil
import sys

import click

from precaudit import rulebook
from precaudit.model.wire import Rule


@click.command(name="rules", short_help="Show the rule table, or one rule: precaudit rules PA301")
@click.argument("names", nargs=-1, metavar="[RULE]...")
@click.option(
    "--output-format", "fmt", type=click.Choice(["text", "json", "md"]), default="text", show_default=True,
    help="What to write the rules as.",
)  # fmt: skip
def rules(names: tuple[str, ...], fmt: str) -> None:
    """Show the rule table, or the page of each RULE, an id or a name.

    Example: precaudit rules PA301
    """
    book = rulebook.load()
    click.echo(show(book, [book.find(name) for name in names], fmt), nl=False)


def show(book: rulebook.Rulebook, chosen: list[Rule], fmt: str) -> str:
    """The chosen rules' pages, or the whole table where none is chosen, as text, json or md."""
    if fmt == "json":
        listed = [rule.model_dump(mode="json") for rule in chosen or book.rules.values()]
        return json.dumps(listed, indent=2, ensure_ascii=False) + "\n"
    if fmt == "md":
        from precaudit.report.rulepage import docs_page, rule_markdown

        return "\n".join(rule_markdown(rule) for rule in chosen) if chosen else docs_page(book)
    from precaudit.report.terminal import rule_page, rule_table

    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = shutil.get_terminal_size().columns
    if not chosen:
        return rule_table(book, color=color, width=width)
    return "\n".join(rule_page(rule, color=color, width=min(width, 100)) for rule in chosen)
