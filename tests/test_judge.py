"""What the judge makes of each Fact: the contract between the two witnesses and the rule table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from precaudit import rulebook
from precaudit.judge import judge, role_table
from precaudit.model.vocabulary import Cause, Fact, Kind, Role, Site
from precaudit.model.wire import Finding

BOOK = rulebook.load()


def fact(kind: str, dtype: str = "", role: str | None = None, evidence: Mapping[str, float] = {}, **attrs: Any) -> Fact:
    return Fact(Kind(kind), dtype=dtype, role=Role(role) if role else None, attrs=attrs, evidence=evidence)


def holds(role: str, dtype: str, evidence: Mapping[str, float] = {}, **attrs: Any) -> Fact:
    return fact("holds", dtype, role, evidence, **attrs)


def verdicts(one: Fact) -> dict[str, str]:
    """Rule id -> severity, whichever witness saw it; tensors in a file are seen by one alone."""
    found: dict[str, str] = {}
    for witness in ("checkpoint",) if "checkpoint" in one.attrs else ("check", "trace", "checkpoint"):
        found |= {finding.rule: finding.severity.value for finding in judge([one], BOOK, witness)}
    return found


SPOKEN: list[tuple[Fact, dict[str, str]]] = [
    (fact("suppression", used=False), {"PA001": "warning"}),
    (fact("suppression", names_rule=False), {"PA002": "warning"}),
    (fact("suppression", expired=True), {"PA003": "warning"}),
    (holds("master_weight", "bfloat16"), {"PA101": "warning"}),
    (holds("master_weight", "bfloat16", {"updates_lost": 0.91}), {"PA101": "error"}),
    (holds("master_weight", "bfloat16", {"updates_lost": 0.001}), {"PA101": "warning"}),
    (holds("master_weight", "bfloat16", {"updates_lost": 0.0}), {}),
    (fact("cast", "float16", after_optimizer=True), {"PA102": "error"}),
    (holds("accumulator", "bfloat16", what="ema"), {"PA103": "warning"}),
    (holds("accumulator", "bfloat16", {"updates_lost": 0.98}, what="ema"), {"PA103": "error"}),
    (fact("default_dtype", "bfloat16"), {"PA104": "error"}),
    (fact("hollow", "float32", after_step=True), {"PA105": "error"}),
    (fact("hollow", "float32", restored=True), {"PA105": "warning"}),
    (holds("gradient", "float16", loss_scaling="none"), {"PA201": "error"}),
    (fact("clip", scaled=True), {"PA202": "error"}),
    (fact("optimizer_step", gradients="scaled"), {"PA203": "error"}),
    (fact("scaler_step", update="missing"), {"PA204": "error"}),
    (fact("scaler_call", misuse="update-per-optimizer", raises=False), {"PA205": "error"}),
    (fact("scaler_call", misuse="unscale-twice", raises=True), {"PA205": "warning"}),
    (fact("loss_scaling", needed=False), {"PA206": "warning"}),
    (fact("unscale", "float16"), {"PA207": "error"}),
    (holds("gradient_accumulation", "bfloat16"), {"PA208": "warning"}),
    (holds("gradient_accumulation", "bfloat16", {"accumulation_loss": 0.02}), {"PA208": "error"}),
    (holds("gradient_norm", "float16"), {"PA209": "warning"}),
    (holds("gradient_norm", "float16", {"inf_share": 1.0}), {"PA209": "error"}),
    (holds("gradient_norm", "bfloat16"), {"PA209": "note"}),
    (fact("skipped_steps", reason="consecutive"), {"PA210": "warning"}),
    (fact("skipped_steps", evidence={"skipped_share": 1.0}, reason="consecutive"), {"PA210": "error"}),
    (holds("gradient", "float16", underflow=True), {"PA211": "warning"}),
    (fact("op", op="gradient-penalty-scaled"), {"PA212": "error"}),
    (fact("non_finite", "float32", what="loss", value="nan"), {"PA213": "warning"}),
    (fact("non_finite", "float32", what="gradient", value="inf"), {"PA213": "warning"}),
    (fact("non_finite", "float32", what="parameter", value="nan"), {"PA213": "error"}),
    (fact("non_finite", "float32", what="loss", value="nan", follows=True), {}),
    (holds("optimizer_state", "bfloat16"), {"PA301": "error"}),
    (holds("optimizer_state", "bfloat16", {"state_frozen": 0.005}, adapter_only=True), {"PA301": "warning"}),
    (holds("optimizer_state", "bfloat16", {"state_frozen": 0.3}, adapter_only=True), {"PA301": "error"}),
    (fact("eps", "float16", rounds_to="zero"), {"PA302": "error"}),
    (fact("eps", "float16", rounds_to="subnormal"), {"PA302": "error"}),
    (holds("optimizer_state", "bfloat16", what="hyperparameter", key="lr"), {"PA303": "warning"}),
    (holds("optimizer_state", "bfloat16", what="hyperparameter", key="step"), {"PA303": "error"}),
    (holds("accumulator", "bfloat16"), {"PA304": "warning"}),
    (holds("accumulator", "bfloat16", {"updates_lost": 0.4}), {"PA304": "error"}),
    (fact("optimizer_step", gradients="unscaled", autocast=True), {"PA305": "warning"}),
    (holds("loss", "bfloat16"), {"PA401": "error"}),
    (holds("norm_running_statistics", "float16"), {"PA402": "error"}),
    (holds("norm_computation", "bfloat16", hand_written=True), {"PA403": "warning"}),
    (holds("norm_computation", "float16", hand_written=True), {"PA403": "error"}),
    (holds("softmax", "bfloat16", feeds="topk"), {"PA404": "warning"}),
    (holds("softmax", "bfloat16", {"log_prob_error": 0.02}, feeds="loss"), {"PA404": "error"}),
    (holds("reduction", "bfloat16", pattern="running"), {"PA405": "warning"}),
    (holds("reduction", "float16", {"inf_share": 1.0}, pattern="near-overflow"), {"PA405": "error"}),
    (fact("constant", "float16", overflows=True), {"PA406": "error"}),
    (fact("constant", "float16", rounds_to="zero", feeds="log"), {"PA407": "warning"}),
    (holds("positions", "bfloat16", representable=False), {"PA408": "error"}),
    (fact("op", "bfloat16", op="bce-on-probabilities"), {"PA409": "warning"}),
    (fact("op", "bfloat16", op="no-promotion"), {"PA410": "warning"}),
    (fact("overflow", "float16", inf_seen=False), {"PA411": "warning"}),
    (fact("overflow", "float16", inf_seen=True), {"PA411": "error"}),
    (fact("op", "bfloat16", op="low-precision-sampling"), {"PA412": "warning"}),
    (fact("op", "bfloat16", op="low-precision-target"), {"PA413": "warning"}),
    (fact("op", "bfloat16", op="low-precision-router"), {"PA414": "note"}),
    (fact("op", "float32", op="cancellation", cancels="variance"), {"PA415": "warning"}),
    (fact("op", "bfloat16", op="low-precision-metric"), {"PA416": "warning"}),
    (fact("op", "bfloat16", op="rounded-log-probabilities"), {"PA417": "warning"}),
    (holds("gradient_reduction", "float16", chosen="explicit"), {"PA501": "error"}),
    (holds("gradient_reduction", "bfloat16", chosen="default"), {"PA501": "warning"}),
    (holds("gradient_reduction", "bfloat16", chosen="explicit"), {"PA501": "note"}),
    (holds("gradient_reduction", "bfloat16", chosen="framework"), {"PA501": "note"}),
    (fact("loss_scaling", sharded_without_scaler=True), {"PA502": "error"}),
    (holds("norm_running_statistics", "bfloat16", by="buffer_dtype"), {"PA503": "warning"}),
    (fact("declared", "float32", "gradient_reduction", actual="bfloat16", relation="lower"), {"PA504": "error"}),
    (fact("declared", "float16", "matmul_compute", actual="float32", relation="higher"), {"PA504": "note"}),
    (fact("declared", "float16", "matmul_compute", actual="bfloat16", relation="substitute"), {"PA504": "note"}),
    (fact("ranks_differ", role="optimizer_state"), {"PA505": "error"}),
    (fact("checkpoint", saves_optimizer=True, saves_scaler=False), {"PA601": "warning"}),
    (fact("checkpoint", "bfloat16", low=True), {"PA602": "error"}),
    (fact("hollow", "float32", checkpoint=True), {"PA603": "note"}),
    (fact("hollow", "float32", checkpoint=True, restored=True), {"PA603": "warning"}),
    (fact("checkpoint", "float32", values="negative"), {"PA604": "error"}),
    (fact("checkpoint", "bfloat16", values="apart"), {"PA605": "warning"}),
    (fact("checkpoint", "bfloat16", values="initial"), {"PA606": "warning"}),
    (fact("checkpoint", "float32", values="initial", content="bfloat16"), {"PA606": "warning"}),
    (fact("checkpoint", "float32", values="initial"), {"PA606": "note"}),
    (fact("backward", autocast=True), {"PA701": "warning"}),
    (fact("cast", "float16", under_autocast=True), {"PA702": "warning"}),
    (fact("autocast", "bfloat16", enabled=False, upcast=False), {"PA703": "warning"}),
    (fact("autocast", "float16", dtype_given=False), {"PA704": "warning"}),
    (fact("op", op="binary_cross_entropy", under_autocast=True), {"PA705": "error"}),
    (fact("call", api="autograd.Function", decorated=False), {"PA706": "warning"}),
    (fact("call", api="torch.cuda.amp.GradScaler", deprecated=True), {"PA707": "warning"}),
    (fact("autocast", "bfloat16", stale_cache=True), {"PA708": "warning"}),
    (fact("call", api="reduced-precision-flag"), {"PA709": "warning"}),
    (fact("autocast", "float16", prefer="bfloat16"), {"PA710": "note"}),
    (fact("op", "float32", op="float32-matmul-under-mixed-precision"), {"PA711": "note"}),
    (fact("op", "float32", op="promotion-by-parameter"), {"PA712": "note"}),
    (fact("config", key="bf16_master_weights_and_grads"), {"PA801": "error"}),
    (fact("config", conflict=True), {"PA802": "error"}),
    (fact("config", "bfloat16", key="grad_accum_dtype", many_micro_batches=True), {"PA803": "warning"}),
    (fact("loss_scaling", extreme=True), {"PA804": "warning"}),
    (fact("config", mismatch=True), {"PA805": "error"}),
    (holds("master_weight", "bfloat16", chosen="checkpoint"), {"PA101": "warning"}),
    (holds("master_weight", "float16", trainer_fp16=True), {"PA101": "warning", "PA806": "error"}),
    (fact("config", precision="16-true"), {"PA807": "error"}),
    (fact("config", precision="bf16-true"), {"PA807": "warning"}),
    (fact("declared", "float16", "quantized_storage", loss_scaling="none"), {"PA808": "warning"}),
    (fact("declared", "float16", "quantized_storage", loss_scaling="scaled"), {"PA808": "note"}),
    (fact("declared", "float32", "quantized_storage"), {"PA808": "note"}),
    (fact("call", api="prepare_model_for_kbit_training", called=False), {"PA809": "warning"}),
    (holds("master_weight", "float32", swapped=True), {"PA810": "error"}),
    (holds("adapter_parameter", "float16", loss_scaling="none"), {"PA811": "error"}),
    (fact("cast", "float32", unties=True), {"PA812": "error"}),
]

SILENT: list[Fact] = [
    fact("suppression", used=True, names_rule=True),
    holds("master_weight", "float32"),
    holds("master_weight", "bfloat16", {"updates_lost": 0.9}, allowed_because="stochastic-rounding"),
    holds("master_weight", "bfloat16", allowed_because="kahan"),
    holds("master_weight", "bfloat16", allowed_because="adapter-only"),
    fact("cast", "float16", after_optimizer=False),
    fact("hollow", "float32", after_step=False),
    fact("hollow", "float32"),
    holds("gradient", "float16", loss_scaling="scaled"),
    holds("gradient", "bfloat16", loss_scaling="none"),
    fact("clip", scaled=False),
    fact("optimizer_step", gradients="unscaled", autocast=False),
    fact("unscale", "float32"),
    fact("loss_scaling", needed=True, dynamic=True, extreme=False),
    holds("gradient_accumulation", "float32"),
    holds("optimizer_state", "bfloat16", allowed_because="block-wise"),
    holds("optimizer_state", "float64"),
    fact("eps", "bfloat16", rounds_to="itself"),
    holds("softmax", "bfloat16"),
    holds("softmax", "bfloat16", feeds="matmul"),
    holds("norm_computation", "bfloat16", hand_written=False),
    holds("positions", "bfloat16", representable=True),
    holds("reduction", "bfloat16", pattern="kernel"),
    fact("constant", "float16", overflows=False, rounds_to="itself"),
    holds("forward_weight", "float16"),
    holds("activation", "bfloat16"),
    holds("matmul_compute", "bfloat16"),
    holds("adapter_parameter", "bfloat16", loss_scaling="none"),
    holds("gradient_reduction", "float32", chosen="default"),
    fact("checkpoint", saves_optimizer=True, saves_scaler=True),
    fact("autocast", "bfloat16", enabled=True, dtype_given=True),
    fact("autocast", "float32", enabled=False, upcast=True),
    fact("config", "bfloat16", key="grad_accum_dtype", many_micro_batches=False),
    fact("declared", "bfloat16", "quantized_storage"),
    fact("call", api="prepare_model_for_kbit_training", called=True),
]


def describe(value: object) -> str | None:
    if isinstance(value, Fact):
        attrs = ",".join(f"{k}={v}" for k, v in {**value.attrs, **value.evidence}.items())
        return f"{value.role.value if value.role else value.kind.value} {value.dtype} {attrs}".replace("  ", " ")
    return ",".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else None


@pytest.mark.parametrize(("one", "expected"), SPOKEN, ids=describe)
def test_a_fact_earns_exactly_these_findings(one: Fact, expected: dict[str, str]) -> None:
    assert verdicts(one) == expected


@pytest.mark.parametrize("one", SILENT, ids=describe)
def test_a_legal_fact_earns_none(one: Fact) -> None:
    assert verdicts(one) == {}


def test_every_rule_has_a_fact_here_that_trips_it() -> None:
    assert {rule for _, expected in SPOKEN for rule in expected} == set(BOOK.rules)


def test_a_witness_is_not_asked_about_what_only_the_other_can_see() -> None:
    hollow = fact("hollow", "float32", after_step=True)
    assert judge([hollow], BOOK, "check") == []
    assert [f.rule for f in judge([hollow], BOOK, "trace")] == ["PA105"]


def state(module: str, **more: Any) -> Fact:
    site = Site("train.py", 42, 17, 42, 60, "main")
    return Fact(Kind.HOLDS, dtype="bfloat16", role=Role.OPTIMIZER_STATE, site=site, module=module, **more)


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


def test_facts_that_differ_only_in_module_become_one_finding_with_the_worst_evidence() -> None:
    facts = [
        state("layers.0.attn", count=2, bytes=100, evidence={"state_frozen": 0.2, "headroom": 3.0}),
        state("layers.1.attn", count=3, bytes=50, evidence={"state_frozen": 0.5, "headroom": 9.0}),
    ]
    found = only(judge(facts, BOOK, "trace"))
    assert (found.count, found.module, found.cost_bytes) == (5, "layers.*.attn", 150)
    assert found.evidence == {"state_frozen": 0.5, "headroom": 3.0}


def test_the_message_is_the_rules_clause_with_the_facts_detail_after_a_colon() -> None:
    found = only(judge([state("", detail="AdamW exp_avg, exp_avg_sq of 398/398 parameters")], BOOK, "trace"))
    assert found.message == "optimizer state is bfloat16: AdamW exp_avg, exp_avg_sq of 398/398 parameters"


def test_on_adapter_only_training_the_message_says_so_first() -> None:
    found = only(judge([state("", attrs={"adapter_only": True})], BOOK, "trace"))
    assert found.message == "only adapters are trained, and their optimizer state is bfloat16"


def test_the_fix_speaks_the_words_of_the_framework_in_use() -> None:
    found = only(judge([state("")], BOOK, "trace", frameworks=["nothing-known", "fsdp2", "trainer"]))
    assert found.fix == BOOK.find("PA301").fixes["fsdp2"]


def test_what_the_role_may_hold_comes_from_the_role_table() -> None:
    assert only(judge([state("")], BOOK, "trace")).allowed == ["float32", "float64"]


def test_the_cause_travels_with_the_finding() -> None:
    found = only(judge([state("", cause=Cause("cast to bfloat16", Site("model.py", 41)))], BOOK, "trace"))
    assert found.cause is not None
    assert (found.cause.text, found.cause.path, found.cause.line) == ("cast to bfloat16", "model.py", 41)


def test_the_fingerprint_survives_a_moved_line() -> None:
    moved = state("")
    moved = Fact(**{**{s: getattr(moved, s) for s in moved.__slots__}, "site": Site("train.py", 99, 1, 99, 9, "main")})
    one, other = (only(judge([f], BOOK, "trace")) for f in (state(""), moved))
    assert one.line != other.line
    assert one.fingerprint == other.fingerprint


def test_worst_comes_first() -> None:
    facts = [fact("autocast", "float16", prefer="bfloat16"), holds("master_weight", "bfloat16"), state("")]
    assert [f.severity.value for f in judge(facts, BOOK, "trace")] == ["error", "warning", "note"]


def test_a_number_that_is_not_finite_is_no_evidence() -> None:
    found = only(judge([state("", evidence={"state_frozen": float("nan"), "updates_lost": 0.5})], BOOK, "trace"))
    assert found.evidence == {"updates_lost": 0.5}


def test_a_mistake_that_was_measured_to_do_nothing_is_a_note() -> None:
    """By the exact step: what it did is under 0.05 %, which is shown as 0.0 %."""
    for name in ("exact_update_error", "exact_local_error"):
        found = only(judge([holds("master_weight", "bfloat16", {name: 0.0004})], BOOK, "trace"))
        assert (found.severity.value, found.evidence) == ("note", {name: 0.0004})
        assert found.message.endswith("(measured: 0.0 %)")
        assert verdicts(holds("master_weight", "bfloat16", {name: 0.0006})) == {"PA101": "warning"}
    of_both = {"exact_update_error": 0.0004, "updates_lost": 0.91}
    assert verdicts(holds("master_weight", "bfloat16", of_both)) == {"PA101": "note"}
    assert verdicts(holds("master_weight", "bfloat16", {"exact_loss_error": 0.0})) == {"PA101": "warning"}


class TestRoleTable:
    def test_a_role_nobody_saw_is_not_observed_and_never_ok(self) -> None:
        rows = role_table([], [], BOOK)
        assert {row.verdict for row in rows} == {"not-observed"}
        assert len(rows) == len(BOOK.roles)

    def test_a_role_with_a_finding_is_a_violation_and_one_as_wanted_is_ok(self) -> None:
        facts = [state("", count=4, bytes=8), holds("loss", "float32"), holds("activation", "bfloat16")]
        rows = {row.role: row for row in role_table(facts, judge(facts, BOOK, "trace"), BOOK)}
        assert (rows["optimizer_state"].verdict, rows["optimizer_state"].tensors) == ("violation", 4)
        assert rows["loss"].verdict == "ok"
        assert rows["activation"].verdict == "ok"

    def test_low_state_that_a_rule_allows_is_allowed(self) -> None:
        facts = [holds("optimizer_state", "bfloat16", allowed_because="kahan")]
        rows = {row.role: row.verdict for row in role_table(facts, judge(facts, BOOK, "trace"), BOOK)}
        assert rows["optimizer_state"] == "allowed"

    def test_a_violation_whose_finding_was_filtered_away_is_not_called_allowed(self) -> None:
        rows = {row.role: row.verdict for row in role_table([state("")], [], BOOK)}
        assert rows["optimizer_state"] == "violation"

    def test_a_violation_that_the_user_suppressed_is_allowed(self) -> None:
        findings = judge([state("")], BOOK, "trace")
        findings[0].suppressed = True
        rows = {row.role: row.verdict for row in role_table([state("")], findings, BOOK)}
        assert rows["optimizer_state"] == "allowed"

    def test_what_is_only_a_note_is_allowed(self) -> None:
        facts = [holds("gradient_reduction", "bfloat16", chosen="explicit")]
        rows = {row.role: row.verdict for row in role_table(facts, judge(facts, BOOK, "trace"), BOOK)}
        assert rows["gradient_reduction"] == "allowed"


def test_what_may_be_low_says_why() -> None:
    """Under the role table an allowance without a reason would be a riddle."""

    def because(held: Fact, suppressed: bool = False) -> list[str]:
        found = judge([held], BOOK, "trace")
        for one in found:
            one.suppressed = suppressed
        (row,) = [row for row in role_table([held], found, BOOK) if row.dtype == "bfloat16"]
        assert row.verdict == "allowed"
        return row.because

    assert because(holds("master_weight", "bfloat16", {"updates_lost": 0.0})) == ["harmless"]
    assert because(holds("master_weight", "bfloat16", chosen="default")) == ["note"]
    assert because(holds("master_weight", "bfloat16", {"updates_lost": 0.5}), suppressed=True) == ["silenced"]
