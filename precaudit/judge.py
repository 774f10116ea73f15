"""Holds Facts against the rulebook and makes Findings; knows nothing of torch, libcst or any output format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

from precaudit.model.evidence import joined_parts, nil, worst
from precaudit.model.vocabulary import FLOATING, Fact, Kind, Part, Role, Scalar
from precaudit.model.wire import Case, Finding, Grade, Line, PartOf, RoleSummary, Rule, Severity
from precaudit.rulebook import Rulebook, dtypes


def nobody(rule: Rule, fact: Fact) -> str:
    """Allows nothing."""
    return ""


def judge(
    facts: Iterable[Fact],
    book: Rulebook,
    witness: str,
    frameworks: Sequence[str] = (),
    allowed: Callable[[Rule, Fact], str] = nobody,
) -> list[Finding]:
    """The findings in these Facts, worst first; Facts that differ only in module or count become one finding.

    `witness` is "check", "trace" or "checkpoint": a rule speaks only about what its `seen_by` names.
    `frameworks` chooses the words of the fix ("fsdp2", "trainer"), or where there are none those that a Fact names
    itself; the first that a rule knows wins. `allowed` says why something is all right that breaks a rule, "" where
    nothing does: such a finding is there, with the reason, and counts for nothing.
    """
    findings: dict[tuple[Any, ...], Finding] = {}
    parts: dict[tuple[Any, ...], str] = {}
    speaking = [rule for rule in book.rules.values() if witness in rule.seen_by]
    for fact in facts:
        for rule in speaking:
            if not matches(rule, fact):
                continue
            graded = grade(rule, fact)
            if graded is None:
                continue
            found = _finding(rule, fact, graded, witness, frameworks, _allowed(rule, fact, book))
            found.because = allowed(rule, fact)
            found.suppressed = bool(found.because)
            key = (rule.id, found.path, found.line, found.dtype, found.message, found.because)
            findings[key] = _merge(findings[key], found) if key in findings else found
            if (case := case_of(rule, fact)) is not None and case.part_of:
                parts[key] = case.part_of
    for key, whole in parts.items():
        _is_part_of(findings[key], [f for f in findings.values() if f.rule == whole])
    return sorted(findings.values(), key=lambda f: (-f.severity.rank, f.rule, f.path or "", f.line or 0, f.column or 0))


def matches(rule: Rule, fact: Fact) -> bool:
    """Whether a Fact is what the rule forbids."""
    if rule.fact is not fact.kind:
        return False
    if rule.role is not None and fact.role not in (rule.role if isinstance(rule.role, list) else [rule.role]):
        return False
    if rule.forbid is not None and fact.dtype not in dtypes(rule.forbid):
        return False
    if rule.allow is not None and (fact.dtype not in FLOATING or fact.dtype in dtypes(rule.allow)):
        return False
    return fits(rule.when, fact.attrs) and not (rule.unless and any_fits(rule.unless, fact.attrs))


def fits(wanted: Mapping[str, Any], attrs: Mapping[str, Scalar]) -> bool:
    """Whether every wanted attribute is there with the wanted value, or one of the wanted values."""
    return all(key in attrs and attrs[key] in _listed(value) for key, value in wanted.items())


def any_fits(wanted: Mapping[str, Any], attrs: Mapping[str, Scalar]) -> bool:
    """Whether at least one of these attributes is there with such a value."""
    return any(key in attrs and attrs[key] in _listed(value) for key, value in wanted.items())


class Graded(NamedTuple):
    """What one Fact earned under a rule: the severity, and the grade's own words for it, if it has any."""

    severity: Severity
    message: str = ""
    fix: str = ""


def grade(rule: Rule, fact: Fact) -> Graded | None:
    """The severity this Fact earns under the rule, and its clause; None where the rule says to stay silent."""
    for candidate in rule.grades:
        if _grade_fits(candidate, fact):
            if candidate.severity == "silent":
                return None
            return _weighed(Graded(Severity(candidate.severity), candidate.message, candidate.fix), rule, fact)
    return _weighed(Graded(rule.severity), rule, fact)


def _weighed(graded: Graded, rule: Rule, fact: Fact) -> Graded:
    """What was measured to do nothing is a note, and says so."""
    if graded.severity is Severity.NOTE or not nil(fact.evidence):
        return graded
    message = graded.message or (case_of(rule, fact) or Case()).message or rule.message
    return Graded(Severity.NOTE, f"{message} (measured: 0.0 %)", graded.fix)


def case_of(rule: Rule, fact: Fact) -> Case | None:
    """The first of the rule's cases that this Fact is."""
    return next(
        (c for c in rule.cases if (not c.dtype or fact.dtype in dtypes(c.dtype)) and fits(c.when, fact.attrs)), None
    )


def _is_part_of(finding: Finding, wholes: Iterable[Finding]) -> None:
    """Where another finding is the same mistake it weighs no more than a warning, and that one is its cause."""
    whole = next((w for w in wholes if (w.path, w.dtype) == (finding.path, finding.dtype)), None)
    if whole is None or whole.severity is Severity.NOTE:
        return
    if finding.severity is Severity.ERROR:
        finding.severity = Severity.WARNING
    finding.cause = Line(
        text="the same mistake as the one found here",
        path=whole.path or "",
        line=whole.line or 0,
        column=whole.column or 0,
    )


def _grade_fits(candidate: Grade, fact: Fact) -> bool:
    measured = fact.evidence
    return (
        (not candidate.dtype or fact.dtype in dtypes(candidate.dtype))
        and fits(candidate.when, fact.attrs)
        and all(name in measured and measured[name] >= least for name, least in candidate.evidence.items())
        and all(name in measured for name in candidate.measured)
        and all(name in measured and measured[name] < most for name, most in candidate.below.items())
    )


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _allowed(rule: Rule, fact: Fact, book: Rulebook) -> list[str]:
    """What the role may hold instead: by the rule's own list, else the role table, else what is not forbidden."""
    if rule.allow is not None:
        return sorted(dtypes(rule.allow))
    row = book.roles.get(fact.role) if fact.role else None
    if row is not None and row.wanted != ["any"]:
        return sorted(dtypes(row.wanted))
    if rule.forbid is None:
        return []
    return sorted({"bfloat16", "float32", "float64"} - dtypes(rule.forbid))


def _finding(
    rule: Rule, fact: Fact, graded: Graded, witness: str, frameworks: Sequence[str], allowed: list[str]
) -> Finding:
    words = {"dtype": fact.dtype, "role": fact.role.value.replace("_", " ") if fact.role else "", "count": fact.count}
    case = case_of(rule, fact) or Case()
    message = (graded.message or case.message or rule.message).format_map(_Words({**fact.attrs, **words}))
    says_all = case.says_all and not graded.message
    site = fact.site
    met = frameworks or str(fact.attrs.get("frameworks", "")).split(",")
    fix = graded.fix or case.fix or next((rule.fixes[name] for name in met if name in rule.fixes), rule.fix)
    cause = None
    if fact.cause:
        at = fact.cause.site
        cause = Line(text=fact.cause.text, path=at.path if at else "", line=at.line if at else 0)
    return Finding(
        rule=rule.id,
        name=rule.name,
        severity=graded.severity,
        role=fact.role.value if fact.role else None,
        message=message if says_all else _with(message, fact.detail),
        path=site.path if site else None,
        line=(site.line or None) if site else None,
        column=(site.column or None) if site else None,
        end_line=(site.end_line or None) if site else None,
        end_column=(site.end_column or None) if site else None,
        library=site.library if site else "",
        module=fact.module,
        dtype=fact.dtype,
        allowed=allowed,
        count=max(1, fact.count),
        seen_by=[witness],
        evidence={name: value for name, value in fact.evidence.items() if isfinite(value)},
        parts=[PartOf(name=part.name, tensors=part.tensors, evidence=dict(part.evidence)) for part in fact.parts],
        cause=cause,
        fix=fix,
        why=" ".join(case.why.split()),
        cost_bytes=_cost(rule, fact),
        fingerprint=_fingerprint(
            rule.id, site.path if site else "", site.function if site else "", fact.dtype, message
        ),
    )


def _with(message: str, detail: str) -> str:
    """A message and what the Fact adds: a sentence after a colon, the bare name of an operation in parentheses."""
    if not detail or detail in message.split():
        return message
    return f"{message} ({detail})" if detail.isidentifier() else f"{message}: {detail}"


class _Words(dict[str, Any]):
    """Lets a message name an attribute that this Fact does not have."""

    def __missing__(self, key: str) -> str:
        return key.replace("_", " ")


def _cost(rule: Rule, fact: Fact) -> int:
    """Bytes that float32 would add for tensors that stay allocated; 0 where the fix costs no memory that we know of."""
    lasting = {Role.OPTIMIZER_STATE, Role.MASTER_WEIGHT, Role.ACCUMULATOR, Role.GRADIENT_ACCUMULATION}
    lasting.add(Role.NORM_RUNNING_STATISTICS)
    if fact.kind is not Kind.HOLDS or fact.role not in lasting or fact.dtype not in FLOATING:
        return 0
    return max(0, fact.bytes * 32 // FLOATING[fact.dtype].bits - fact.bytes)


def _fingerprint(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _merge(one: Finding, other: Finding) -> Finding:
    one.count += other.count
    one.cost_bytes += other.cost_bytes
    one.ranks = sorted({*one.ranks, *other.ranks})
    one.evidence = worst(one.evidence, other.evidence)
    if other.parts:
        mine, theirs = ([Part(**part.model_dump()) for part in found.parts] for found in (one, other))
        one.parts = [PartOf(**part._asdict()) for part in joined_parts(mine, theirs, same=False)]
    if other.severity.rank > one.severity.rank:
        one.severity = other.severity
    if other.module and other.module != one.module and one.module:
        one.module = common_pattern(one.module, other.module)
    return one


def common_pattern(one: str, other: str) -> str:
    """One fqn pattern for two fqns: `layers.0.attn` and `layers.1.attn` are `layers.*.attn`; else the common front."""
    a, b = one.split("."), other.split(".")
    if len(a) == len(b):
        return ".".join(x if x == y else "*" for x, y in zip(a, b, strict=True))
    front = []
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        front.append(x)
    return ".".join([*front, "*"])


def role_table(
    facts: Iterable[Fact], findings: Iterable[Finding], book: Rulebook, witness: str = "trace"
) -> list[RoleSummary]:
    """How many tensors of each role held each dtype, with the verdict; a role nobody saw is "not-observed".

    `findings` are those that will be shown. A Fact that breaks a rule whose finding was filtered away is a violation
    all the same; one whose finding is suppressed counts as allowed, by the user.
    """
    findings = list(findings)
    speaking = [rule for rule in book.rules.values() if witness in rule.seen_by]
    suppressed = {(f.role, f.dtype) for f in findings if f.suppressed}
    given = {(f.role, f.dtype): f.because for f in findings if f.because}
    loud = {(f.role, f.dtype) for f in findings if f.severity is not Severity.NOTE and not f.suppressed}
    held: dict[tuple[Role, str], list[int]] = {}
    excuses: dict[tuple[Role, str], set[str]] = {}
    for fact in facts:
        if fact.kind is Kind.NON_FINITE and fact.role is not None:  # right in its dtype, and yet not ok
            loud.add((fact.role, fact.dtype))
        if fact.kind is Kind.HOLDS and fact.role is not None and fact.attrs.get("what") != "hyperparameter":
            tally = held.setdefault((fact.role, fact.dtype), [0, 0])
            tally[0] += fact.count
            tally[1] += fact.bytes
            if why := fact.attrs.get("allowed_because"):
                excuses.setdefault((fact.role, fact.dtype), set()).add(str(why))
            place = (fact.role.value, fact.dtype)
            if place not in loud and place not in suppressed and _breaks_a_rule(fact, speaking):
                loud.add(place)
    rows = []
    for role, row in book.roles.items():
        mine = sorted((dtype, tally[0], tally[1]) for (seen, dtype), tally in held.items() if seen is role)
        if not mine:
            rows.append(RoleSummary(role=role.value, dtype=None, tensors=0, bytes=0, verdict="not-observed"))
        for dtype, tensors, size in mine:
            verdict: Any = "allowed"
            if (role.value, dtype) in loud:
                verdict = "violation"
            elif row.wanted == ["any"] or dtype in dtypes(row.wanted):
                verdict = "ok"
            because = sorted(excuses.get((role, dtype), ())) if verdict == "allowed" else []
            if verdict == "allowed" and (role.value, dtype) in given:
                because.append(given[role.value, dtype])
            if verdict == "allowed" and not because:
                because = _excused(findings, role, dtype)
            row_of = RoleSummary(
                role=role.value, dtype=dtype, tensors=tensors, bytes=size, verdict=verdict, because=because
            )
            rows.append(row_of)
    return rows


def _excused(findings: Iterable[Finding], role: Role, dtype: str) -> list[str]:
    """Why a role may hold less where no Fact says it: it is silenced, a note, or did no harm."""
    mine = [f for f in findings if (f.role, f.dtype) == (role.value, dtype)]
    if any(f.suppressed for f in mine):
        return ["silenced"]
    return ["note" if mine else "harmless"]


def _breaks_a_rule(fact: Fact, rules: Iterable[Rule]) -> bool:
    """Whether a Fact earns an error or a warning under any of these rules."""
    graded = (grade(rule, fact) for rule in rules if matches(rule, fact))
    return any(one is not None and one.severity is not Severity.NOTE for one in graded)
