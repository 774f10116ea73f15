"""What a person sees: the drawing of a trace, the excerpts of a check, at every width and without colour."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from precaudit.model.evidence import EVIDENCE
from precaudit.model.wire import Finding, Line, Severity
from precaudit.report import render, words
from precaudit.report.evidence import number, sentence, share
from precaudit.report.roles import rows
from precaudit.report.stories import stories
from precaudit.report.words import opening_sentences, place, plural, size, visible
from tests.report import samples

GOLD = Path(__file__).parents[1] / "gold"
WIDTHS = [40, 60, 80, 120, 200]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return samples.write_sources(tmp_path)


@pytest.mark.parametrize("name", ["trace", "check"])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_report_looks_as_it_was_last_reviewed(name: str, width: int, root: Path, update_gold: bool) -> None:
    text = render(getattr(samples, name)(), "text", root=root, width=width)
    path = GOLD / f"{name}-{width}.txt"
    if update_gold:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["trace", "check", "hostile", "inconclusive", "clean"])
def test_no_line_is_wider_than_the_terminal(name: str, width: int, root: Path) -> None:
    text = render(getattr(samples, name)(), "text", root=root, width=width, verbosity=1)
    assert max(cell_len(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_names_are_folded_and_never_truncated(width: int, root: Path) -> None:
    text = re.sub(r"\s+", "", render(samples.trace(), "text", root=root, width=width))
    assert "ema.layers.*.self_attention.query_key_value.bias" in text
    assert "vision_tower.encoder.layers.23.mlp.fc2" in text
    assert "mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16,reduce_dtype=torch.float32))" in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("verbosity", [-1, 0, 1])
def test_colour_adds_nothing_that_plain_text_does_not_say(width: int, verbosity: int, root: Path) -> None:
    plain = render(samples.trace(), "text", root=root, width=width, verbosity=verbosity)
    color = render(samples.trace(), "text", root=root, width=width, verbosity=verbosity, color=True)
    assert "\x1b[" in color
    assert "\x1b" not in plain
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", color)
    assert [line.rstrip() for line in stripped.splitlines()] == plain.splitlines()


def test_markup_in_a_message_is_shown_as_it_is(root: Path) -> None:
    assert "cross_entropy of [torch.bfloat16] logits" in render(samples.trace(), "text", root=root, width=120)


@pytest.mark.parametrize("width", [120, 1000])
def test_control_and_bidirectional_characters_are_shown_and_not_obeyed(width: int, root: Path) -> None:
    text = render(samples.hostile(), "text", root=root, width=width)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[31m" in text
    assert "\\u202e" in text


def test_findings_stand_worst_first(root: Path) -> None:
    text = render(samples.trace(), "text", root=root, width=120)
    heads = re.findall(r"^([x!i]) PA\d{3}", text, re.MULTILINE)
    assert heads == sorted(heads, key="x!i".index)


def test_one_cause_is_one_story_with_its_consequences_below(root: Path) -> None:
    text = render(samples.trace(), "text", root=root, width=120)
    story = text[text.index("\nx PA301") : text.index("\nx PA401")]
    assert story.count("    cause ") == 1
    assert "consequences of the same cause" in story
    assert "x PA101 missing-master-weights" in story
    assert "! PA208 low-precision-gradient-accumulation  train.py:14:9" in story


def test_the_caret_stands_under_the_columns_of_the_finding(root: Path) -> None:
    lines = render(samples.trace(), "text", root=root, width=120).splitlines()
    at = next(i for i, line in enumerate(lines) if "optimizer = torch.optim.AdamW(" in line)
    begin, end = lines[at + 1].index("^"), lines[at + 1].rindex("^") + 1
    assert lines[at][begin:end] == "torch.optim.AdamW(model.parameters(), lr=1e-5)"


def test_the_caret_counts_wide_characters_and_tabs_as_the_terminal_does(root: Path) -> None:
    lines = render(samples.trace(), "text", root=root, width=120).splitlines()
    at = next(i for i, line in enumerate(lines) if "漢字" in line)
    shown = lines[at]
    before = cell_len(shown[: shown.index("ss = nn.functional")])
    assert lines[at + 1].index("^") == before


def test_a_very_long_source_line_is_shown_around_its_caret(root: Path) -> None:
    (root / "big.json").write_text("[" + "0, " * 40_000 + "]", encoding="utf-8")
    report = samples.check()
    report.findings = [samples.finding("PA802", 1, 60_001, path="big.json")]
    text = render(report, "text", root=root, width=80)
    assert len(text) < 2000
    assert "^" in text


def test_what_was_not_observed_is_never_shown_as_ok(root: Path) -> None:
    text = render(samples.trace(), "text", root=root, width=120)
    assert "  not seen  loss scale, norm computation, gradient reduction, matmuls, adapter parameters" in text
    for role in ("loss scale", "gradient reduction", "matmuls"):
        assert not any(line.strip().startswith(role) for line in text.splitlines())
    shown = render(samples.trace(), "text", root=root, width=120, verbosity=1)
    assert "no collective ran inside the window; trace it with torchrun" in shown
    assert "checkpointing" in text


def test_a_role_that_was_not_observed_says_what_has_to_run_to_see_it(root: Path) -> None:
    text = render(samples.trace(), "text", root=root, width=120, verbosity=1)
    assert re.search(r"\n  loss scale +needs a loss scaler\n", text)
    assert "a traced step took 34.1 ms, an untraced one 17.6 ms (1.9 times); start 2.31 s" in text


def test_the_first_line_says_what_is_wrong_and_what_it_did(root: Path) -> None:
    first = render(samples.trace(), "text", root=root, width=200).splitlines()[0]
    assert first == (
        "5 errors, 5 warnings: optimizer state, master weights, loss, accumulators and positions are bfloat16; "
        "96 % of non-zero updates were rounded away"
    )
    one = samples.trace()
    one.findings = [samples.finding("PA202", 15, 9, dtype="", evidence={"inf_share": 0.0})]
    assert render(one, "text", root=root, width=200).splitlines()[0] == (
        "1 error: gradients are clipped before scaler.unscale_, while they still carry the loss scale"
    )


@pytest.mark.parametrize("width", [80, 120])
def test_a_clean_run_fits_in_15_lines_with_the_two_that_are_printed_around_it(root: Path, width: int) -> None:
    report = samples.trace()
    report.findings, report.status, report.coverage.not_observed = [], "clean", {}
    report.coverage.notes, report.coverage.overhead = [], {"step_s_traced": 0.03}
    report.coverage.unattributed_ops = 0
    report.roles = [row.model_copy(update={"verdict": "ok"}) if row.dtype else row for row in report.roles]
    text = render(report, "text", root=root, width=width)
    assert len(text.splitlines()) <= 12
    assert "optimizer state (796)" in text
    assert "no untraced one was measured" in text
    assert "verdict" in render(report, "text", root=root, width=width, verbosity=1)


def test_the_last_line_gives_the_counts_and_the_next_command(root: Path) -> None:
    assert render(samples.trace(), "text", root=root, width=200).splitlines()[-1] == (
        "5 errors, 5 warnings · 2 notes (-v shows them) · 1 suppressed · 12 roles, 398 parameters · "
        "next: precaudit report --open"
    )
    assert render(samples.clean(), "text", root=root, width=200) == (
        "no errors, no warnings · 3 files · next: precaudit trace <your training command>\n"
    )


def test_quiet_shows_one_line_per_finding_and_the_verdict(root: Path) -> None:
    lines = render(samples.check(), "text", root=root, width=200, verbosity=-1).splitlines()
    assert len(lines) == 5
    assert lines[0] == "x train.py:10:17 PA301 optimizer state is bfloat16"


def test_a_source_file_that_is_gone_or_not_ours_to_quote_leaves_the_place_alone(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password\n", encoding="utf-8")
    report = samples.check()
    report.findings = [samples.finding("PA301"), samples.finding("PA401", 1, 1, path="secret")]
    text = render(report, "text", root=tmp_path, width=80)
    assert "train.py:10:17" in text
    assert "password" not in text


def test_a_script_out_of_a_wheel_is_named_from_its_package_on() -> None:
    elsewhere = samples.finding("PA101", path="../../env/lib/python3.11/site-packages/trl/scripts/sft.py", line=119)
    assert place(elsewhere) == "trl/scripts/sft.py:119:17"
    assert place(samples.finding("PA101", path="../other/train.py", line=3)) == "../other/train.py:3:17"
    inside = ".venv/lib/python3.11/site-packages/trl/scripts/sft.py"
    assert place(samples.finding("PA101", path=inside, line=3)) == f"{inside}:3:17"


def test_a_cause_on_the_findings_own_line_is_not_quoted_twice(root: Path) -> None:
    report = samples.trace()
    cause = Line(text="the copy was cast to bfloat16", path="train.py", line=11, column=11)
    report.findings = [samples.finding("PA103", 11, 5, cause=cause)]
    text = render(report, "text", root=root, width=100)
    assert text.count("copy.deepcopy(model)\n") == 1
    assert "    cause      the copy was cast to bfloat16, on this line\n" in text


def told(rule: str, cause: Line | None) -> Finding:
    return samples.finding(rule, cause=cause)


def test_findings_are_grouped_by_their_cause_line_else_by_rule() -> None:
    here, there = Line(text="cast", path="a.py", line=3), Line(text="cast", path="a.py", line=9)
    findings = [
        told("PA301", here),
        told("PA404", None),
        told("PA101", here),
        told("PA404", None),
        told("PA301", there),
    ]
    by_rule = [[s.lead.rule, *(c.rule for c in s.consequences)] for s in stories(findings, by_rule=True)]
    assert by_rule == [["PA301", "PA101"], ["PA404", "PA404"], ["PA301"]]
    assert len(stories(findings, by_rule=False)) == 4


def test_a_finding_on_the_line_that_is_anothers_cause_belongs_to_its_story() -> None:
    cast, built = Line(text="cast", path="train.py", line=8), Line(text="built", path="train.py", line=10)
    findings = [
        samples.finding("PA301", 10, cause=cast),
        samples.finding("PA401", 20),
        samples.finding("PA302", 30, cause=Line(text="eps", path="train.py", line=29)),
        samples.finding("PA101", 8, cause=built),
        samples.finding("PA105", 29, cause=built),
    ]
    told = [[s.lead.rule, *(c.rule for c in s.consequences)] for s in stories(findings, by_rule=False)]
    assert told == [["PA301", "PA302", "PA101", "PA105"], ["PA401"]]


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.0, "0 %"), (1.0, "100 %"), (0.347, "35 %"), (0.989, "98.9 %"), (0.9996, "99.96 %"), (0.0047, "0.47 %"),
        (0.034, "3.4 %"), (0.000012, "0.001 %"), (1e-9, "under 0.001 %"), (0.99999, "99.999 %"), (1.7, "170 %"),
        (float("inf"), "inf"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_a_share_never_rounds_a_loss_to_nothing_nor_to_all(ratio: float, text: str) -> None:
    assert share(ratio) == text


def test_every_number_that_the_trace_measures_has_its_words() -> None:
    runtime = Path(__file__).parents[2] / "precaudit" / "runtime"
    source = "".join(path.read_text(encoding="utf-8") for path in runtime.rglob("*.py"))
    named = set(re.findall(r'evidence\[?"?\]?\["(\w+)"\]', source)) | set(re.findall(r'share\(seen, "(\w+)"\)', source))
    named |= {key for body in re.findall(r"evidence=\{([^}]*)\}", source) for key in re.findall(r'"(\w+)":', body)}
    assert "updates_lost" in named
    assert named <= set(EVIDENCE)


def test_evidence_is_put_in_words() -> None:
    assert sentence("updates_lost", 0.989) == "98.9 % of non-zero updates were rounded away"
    assert sentence("headroom", 1.19) == "the largest value is 1.19 doublings below inf"
    assert sentence("a_new_number", 3.0) == "a new number: 3"
    assert all(known.sentence.count("{}") == 1 for known in EVIDENCE.values())


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (940, "940 bytes"), (12_288, "12.29 kB"), (4_100_000_000, "4.10 GB"), (512_000_000, "512 MB")],
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_plurals_and_numbers() -> None:
    assert [plural(1, "error"), plural(2, "micro-batch"), plural(0, "entry")] == [
        "1 error",
        "2 micro-batches",
        "0 entries",
    ]
    assert [number(65536.0), number(0.12345), number(1e20)] == ["65,536", "0.1235", "1e+20"]


def test_visible_text_keeps_every_letter() -> None:
    assert visible("größe 漢字 é\n[x]") == "größe 漢字 é [x]"


def test_the_short_why_goes_up_to_the_first_number_and_is_not_too_short() -> None:
    first, second = (
        "A bfloat16 counter is bad in every loop that goes on for longer than a few steps.",
        "It stops at 256.",
    )
    assert opening_sentences(f"{first}\n{second} And there is more.") == f"{first} {second}"
    assert opening_sentences("It stops at 256. And that is all.") == "It stops at 256. And that is all."


def test_a_role_that_nan_has_reached_names_the_finding_that_tells_of_it(root: Path) -> None:
    report = samples.trace()
    report.findings = [samples.finding("PA213", 15, 9, dtype="float32", role="master_weight", severity=Severity.ERROR)]
    reached = {"verdict": "violation"}
    report.roles = [
        row.model_copy(update=reached) if row.role in ("loss", "master_weight") and row.dtype else row
        for row in report.roles
    ]
    table = {row.role: row for row in rows(report)}
    assert (table["loss"].rules, table["loss"].worst) == (["PA213"], Severity.ERROR)
    text = render(report, "text", root=root, width=120)
    assert re.search(r"^  loss .* x PA213$", text, re.MULTILINE)
    assert "not selected" not in text


def test_a_share_of_nothing_is_no_evidence(root: Path) -> None:
    one = samples.finding("PA301", 15, 9, evidence={"state_frozen": 0.0, "updates_lost": 0.27})
    assert words.evidence(one) == ["27 % of non-zero updates were rounded away"]
