"""docs/messages.md has every message that the fixtures bring forth, and none besides."""

from __future__ import annotations

import itertools
import re

import messages

from precaudit import rulebook

RULES = rulebook.load().rules


def test_what_check_says_of_each_wrong_script_is_in_the_page() -> None:
    rows = messages.of_check()
    scripts = {row.script for row in rows} | {row.script for row in messages.shown() if row.witness == "check"}
    wrong = []
    for script in scripts:
        mine = [row for row in rows if row.script == script]
        wrong += messages.differences(mine, "check", script)
    assert wrong == [], "python tests/messages.py"


def test_every_rule_of_source_and_run_speaks_in_the_page_or_is_named_as_silent() -> None:
    told = {row.script.partition("/")[0] for row in messages.shown()}
    silent = {rule.id for rule in RULES.values() if {"check", "trace"} & set(rule.seen_by)} - told
    # Comments and allowances; two that need a framework or several ranks.
    assert silent == {"PA001", "PA002", "PA003", "PA504", "PA505"}


def test_no_message_says_the_same_thing_twice() -> None:
    """What follows a message's colon brings a word of its own; codes such as `update-per-optimizer` are for data."""
    for row in messages.shown():
        message = row.text.splitlines()[0]
        head, colon, detail = message.partition(": ")
        own = set(re.findall(r"\w+", detail)) - set(re.findall(r"\w+", head))
        assert own or not colon, message
        assert not re.search(r"\([a-z]+-[a-z]+(-[a-z]+)*\)", message), message


def test_rows_of_one_rule_differ() -> None:
    keyed = [(row.script.partition("/")[0], messages.key(row.text)) for row in messages.shown()]
    assert all(one != other for one, other in itertools.pairwise(sorted(keyed)))
