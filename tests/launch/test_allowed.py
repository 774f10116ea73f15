"""What pyproject.toml allows is told as allowed, with the reason, by trace, check and checkpoint; nothing is hidden."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from desk import Desk

from precaudit import rulebook
from precaudit.allowed import read as allowed
from precaudit.allowed.contract import Clause
from precaudit.judge import judge
from precaudit.model.vocabulary import Fact, Kind, Role
from precaudit.report import FORMATS
from precaudit.settings import Settings
from precaudit.shipped import rules_folder

BOOK = rulebook.load()

WRONG = "import torch\nfor step in range(6):\n    torch.train(1, 'bfloat16')\n"
"""For the stand-in torch: a step that holds its optimizer state in bfloat16."""

TRAIN = """
import torch
from torch import nn

model = nn.ModuleDict({"norm": nn.Linear(4, 4), "head": nn.Linear(4, 4)}).to(torch.bfloat16)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
for step in range(4):
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    loss = model["head"](model["norm"](x)).float().square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "saved.pt")
"""


def contract(**tables: Any) -> allowed.Contract:
    return allowed.contract_of(Settings(contract=tables), BOOK)


def state(dtype: str = "bfloat16", module: str = "", **attrs: Any) -> Fact:
    return Fact(Kind.HOLDS, dtype, Role.OPTIMIZER_STATE, module=module, attrs=attrs)


def reasons(fact: Fact, held: allowed.Contract) -> dict[str, str]:
    """Rule -> why it is allowed, "" where it is not."""
    return {finding.rule: finding.because for finding in judge([fact], BOOK, "trace", allowed=held)}


class TestAContract:
    def test_allows_a_role_another_dtype_and_no_other(self) -> None:
        held = contract(optimizer_state=["bfloat16"])
        assert reasons(state(), held) == {"PA301": "the contract in pyproject.toml allows it"}
        assert reasons(state("float16"), held) == {"PA301": ""}
        assert reasons(Fact(Kind.HOLDS, "bfloat16", Role.MASTER_WEIGHT), held) == {"PA101": ""}

    def test_says_the_teams_own_reason(self) -> None:
        held = contract(optimizer_state="bfloat16", because="8 GB cards")
        assert reasons(state(), held) == {"PA301": "the contract in pyproject.toml allows it: 8 GB cards"}

    def test_is_about_dtypes_and_silences_no_rule_about_anything_else(self) -> None:
        """A dtype that is allowed is not thereby scaled, representable, or a number that can move."""
        held = contract(gradient=["float16"], optimizer_state=["bfloat16"], adapter_parameter=["float16"])
        unscaled = Fact(Kind.HOLDS, "float16", Role.GRADIENT, attrs={"loss_scaling": "none"})
        assert reasons(unscaled, held) == {"PA201": ""}
        assert reasons(state(what="hyperparameter", key="step"), held) == {"PA303": ""}
        eps = Fact(Kind.EPS, "bfloat16", Role.OPTIMIZER_STATE, attrs={"rounds_to": "zero"})
        assert reasons(eps, held) == {"PA302": ""}

    def test_of_some_modules_holds_there_alone(self) -> None:
        held = contract(modules=[{"module": "blocks.*", "optimizer_state": ["bfloat16"]}])
        assert reasons(state(module="blocks.3"), held)["PA301"]
        assert not reasons(state(module="head"), held)["PA301"]
        assert not reasons(state(), held)["PA301"], "of a Fact without a module nobody knows"

    def test_of_a_slot_holds_where_that_slot_alone_is_low(self) -> None:
        held = contract(modules=[{"slot": "exp_avg", "optimizer_state": ["bfloat16"]}])
        alone = [("a.weight", {"AdamW.exp_avg": ["bfloat16"], "AdamW.exp_avg_sq": ["float32"]})]
        both = [("a.weight", {"AdamW.exp_avg": ["bfloat16"], "AdamW.exp_avg_sq": ["bfloat16"]})]
        assert reasons(state(optimizer="AdamW"), held.of_run(alone)) == {
            "PA301": "the contract in pyproject.toml allows it in slot exp_avg"
        }
        assert reasons(state(optimizer="AdamW"), held.of_run(both)) == {"PA301": ""}

    def test_covers_every_place_or_none(self) -> None:
        held = contract(modules=[{"module": "blocks.*", "master_weight": ["bfloat16"]}])
        weights = Fact(Kind.HOLDS, "bfloat16", Role.MASTER_WEIGHT)
        inside = ("blocks.*.weight", {"weight": ["bfloat16"], "gradient": ["bfloat16"]})
        frozen = ("head.weight", {"weight": ["bfloat16"]})
        trained = ("head.weight", {"weight": ["bfloat16"], "gradient": ["bfloat16"]})
        assert reasons(weights, held.of_run([inside, frozen]))["PA101"]
        assert not reasons(weights, held.of_run([inside, trained]))["PA101"]

    @pytest.mark.parametrize("name", sorted(allowed.profiles()))
    def test_profile_is_a_file_that_says_what_and_why(self, name: str) -> None:
        clauses = allowed.read_profile(allowed.profiles()[name])
        assert clauses
        assert all(clause.because.startswith(f"profile {name}: ") for clause in clauses)
        assert tuple(clauses) == contract(profile=name).clauses

    def test_profiles_are_those_of_the_issue(self) -> None:
        assert sorted(allowed.profiles()) == [
            "deepspeed-bf16", "fsdp-bf16", "pure-bf16-kahan", "pytorch-amp", "qlora", "rl-fp16",
        ]  # fmt: skip

    def test_profile_and_roles_add_up(self) -> None:
        held = contract(profile="fsdp-bf16", optimizer_state=["bfloat16"])
        reduction = Fact(Kind.HOLDS, "bfloat16", Role.GRADIENT_REDUCTION)
        assert reasons(reduction, held)["PA501"].startswith("profile fsdp-bf16: reduce_dtype=torch.bfloat16")
        assert reasons(state(), held)["PA301"]

    def test_names_block_wise_state_by_its_own_word(self) -> None:
        clause = contract(optimizer_state=["int8-blockwise"]).clauses[0]
        assert clause.names(state("uint8", allowed_because="block-wise"))
        assert not clause.names(state("uint8"))
        assert not clause.names(state("bfloat16"))


class TestAnAllowance:
    entry = {"rule": "PA3", "reason": "measured", "expires": date(2027, 6, 30)}

    def load(self, today: date = date(2027, 6, 30), **more: Any) -> allowed.Contract:
        return allowed.contract_of(Settings(allow=({**self.entry, **more},)), BOOK, today)

    def test_silences_its_rules_with_the_reason_and_the_day(self) -> None:
        assert reasons(state(), self.load()) == {"PA301": "measured (pyproject.toml, until 2027-06-30)"}
        assert reasons(Fact(Kind.HOLDS, "bfloat16", Role.MASTER_WEIGHT), self.load()) == {"PA101": ""}

    def test_of_some_modules_holds_there_alone(self) -> None:
        held = self.load(module="blocks.*")
        assert reasons(state(module="blocks.3"), held)["PA301"]
        assert not reasons(state(module="head"), held)["PA301"]
        assert not reasons(state(), held)["PA301"]

    def test_whose_day_is_over_allows_nothing_and_is_a_warning(self) -> None:
        held = self.load(today=date(2027, 7, 1))
        assert reasons(state(), held) == {"PA301": ""}
        for witness in ("check", "trace", "checkpoint"):
            (told,) = judge(held.expired(Path.cwd()), BOOK, witness)
            assert (told.rule, told.severity.value, told.path) == ("PA003", "warning", "pyproject.toml")
            assert told.message.endswith("counts again: PA3 in *, until 2027-06-30: measured")


PYPROJECT = """[project]
name = "mine"

[[tool.precaudit.allow]]
rule = "PA301"
reason = "8 GB card | measured"
expires = 2099-01-31
"""


BECAUSE = "8 GB card | measured (pyproject.toml, until 2099-01-31)"


class TestATrace:
    @pytest.mark.parametrize("shape", [name for name in FORMATS if name != "flat"])
    def test_tells_what_is_allowed_in_every_format(self, desk: Desk, shape: str) -> None:
        desk.write("pyproject.toml", PYPROJECT)
        traced = desk.trace(WRONG)
        assert (traced.code, traced.report["status"]) == (0, "clean")
        shown = desk.precaudit("report", "--output-format", shape).stdout
        plain = shown.replace("&#124;", "|").replace("\\|", "|").replace("¦", "|")
        assert BECAUSE in " ".join(plain.split())
        assert "PA301" in shown

    def test_counts_nothing_of_what_is_allowed(self, desk: Desk) -> None:
        desk.write("pyproject.toml", PYPROJECT)
        traced = desk.trace(WRONG, "--fail-on", "note")
        assert traced.code == 0
        assert "no errors, no warnings" in traced.stderr
        assert "1 allowed" in traced.stderr
        (row,) = [row for row in traced.report["roles"] if row["role"] == "optimizer_state"]
        assert (row["verdict"], row["because"]) == (
            "allowed",
            [BECAUSE],
        )
        suite = desk.precaudit("report", "--output-format", "junit").stdout
        assert 'failures="0"' in suite
        sarif = json.loads(desk.precaudit("report", "--output-format", "sarif").stdout)
        (result,) = sarif["runs"][0]["results"]
        assert result["suppressions"] == [
            {
                "kind": "external",
                "status": "accepted",
                "justification": "8 GB card | measured (pyproject.toml, until 2099-01-31)",
            }
        ]

    def test_warns_of_an_allowance_that_has_expired_at_its_own_line(self, desk: Desk) -> None:
        desk.write("pyproject.toml", PYPROJECT.replace("2099", "2020"))
        traced = desk.trace(WRONG)
        assert traced.code == 1
        found = {finding["rule"]: finding for finding in traced.report["findings"]}
        assert sorted(found) == ["PA003", "PA301"]
        assert (found["PA003"]["path"], found["PA003"]["line"]) == ("pyproject.toml", 4)

    @pytest.mark.slow
    def test_of_a_real_run_finds_the_places_by_name(self, real_desk: Desk) -> None:
        desk = real_desk
        for module, slot, silent in (("norm*", "*", False), ("*", "*", True), ("[nh]*", "exp_avg*", True)):
            desk.write("pyproject.toml", f"""
[[tool.precaudit.contract.modules]]
module = "{module}"
slot = "{slot}"
optimizer_state = ["bfloat16"]
""")  # fmt: skip
            traced = desk.trace(TRAIN)
            (found,) = [finding for finding in traced.report["findings"] if finding["rule"] == "PA301"]
            assert bool(found["because"]) is silent, module
            assert found["suppressed"] is silent


@pytest.mark.slow
def test_check_and_checkpoint_hold_to_the_same_contract(real_desk: Desk) -> None:
    desk = real_desk
    desk.trace(TRAIN, "--keep-going")
    commands = [("check", "train.py"), ("checkpoint", "saved.pt")]
    assert [desk.precaudit(*words).code for words in commands] == [1, 1]
    desk.write("pyproject.toml", "[tool.precaudit.contract]\nprofile = 'pure-bf16-kahan'\n")
    for words, rules in zip(commands, ({"PA101", "PA301"}, {"PA602"}), strict=True):
        found = json.loads(desk.precaudit(*words, "--output-format", "json").stdout)["findings"]
        told = {one["rule"]: one["because"] for one in found if one["severity"] != "note"}
        assert rules <= set(told)
        assert all(told[rule].startswith("profile pure-bf16-kahan: ") for rule in rules)
        assert desk.precaudit(*words).code == 0
    said = desk.precaudit("check", "train.py").stdout
    assert "allowed, because profile pure-bf16-kahan: " in " ".join(said.split())


def test_check_warns_of_an_expired_allowance_where_nothing_else_is_wrong(desk: Desk) -> None:
    desk.write("fine.py", "import torch\n")
    desk.write("pyproject.toml", PYPROJECT.replace("2099", "2020"))
    checked = desk.precaudit("check", "fine.py", "--fail-on", "warning")
    assert "pyproject.toml:4" in checked.stdout
    assert checked.code == 1


PROFILES = "deepspeed-bf16, fsdp-bf16, pure-bf16-kahan, pytorch-amp, qlora, rl-fp16"


CONTRACT = "[tool.precaudit.contract]"
MODULES = "[[tool.precaudit.contract.modules]]"
ALLOW = "[[tool.precaudit.allow]]"
WHOLE = {"rule": "'PA301'", "reason": "'x'", "expires": "2027-01-01"}


def entry(**changed: str | None) -> str:
    """An allowance as TOML, with other values, or without a key."""
    rows = {key: value for key, value in (WHOLE | changed).items() if value is not None}
    return "\n".join([ALLOW, *(f"{key} = {value}" for key, value in rows.items())])


BAD = {
    "profile = 'qlara'": "profile: 'qlara' is not a profile; did you mean 'qlora'?",
    "profile = 'mine'": f"profile: 'mine' is not a profile; allowed: {PROFILES}",
    "profile = ['qlora', 'rl-fp16']": "profile: 2 profiles, and a contract has one; name one, and write the roles of "
    "the others out",
    "profile = 3": f"profile: the name of a profile is expected; allowed: {PROFILES}",
    "optimiser_state = ['bfloat16']": "optimiser_state: not a role; did you mean 'optimizer_state'?",
    "optimizer_state = ['bfloat61']": "optimizer_state: 'bfloat61' is not a dtype; did you mean 'bfloat16'?",
    "optimizer_state = ['x']": "optimizer_state: 'x' is not a dtype; allowed: float64, float32, bfloat16, float16, "
    "float8_e4m3fn, float8_e5m2, int8-blockwise, float8_e4m3fn-blockwise",
    "optimizer_state = 3": 'optimizer_state: dtypes are expected, such as ["float32", "bfloat16"]',
    "because = ''\nloss = 'bfloat16'": "because: a text is expected",
    "modules = 3": f"modules: tables are expected, each below {MODULES}",
}
"""What stands in the contract -> what is said of it."""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        *((f"{CONTRACT}\n{text}", f": {CONTRACT} {said}") for text, said in BAD.items()),
        (f"{MODULES}\nloss = 'bfloat16'",
         f": {MODULES}: names neither module nor slot; put its roles into {CONTRACT}, or name one"),
        (f"{MODULES}\nmodule = 3\nloss = 'bfloat16'", f": {MODULES} module: a text is expected"),
        ("[tool.precaudit]\nallow = 3", f": [tool.precaudit] allow: tables are expected, each below {ALLOW}"),
        (entry(rule=None), f':1: {ALLOW}: names no rule; add rule = "PA301"'),
        (entry(reason=None), f':1: {ALLOW}: names no reason; add reason = "measured over 10,000 steps: no loss"'),
        ("\n" + entry(expires=None), f":2: {ALLOW}: names no expires; add expires = 2027-06-30"),
        (entry(expires="'soon'"), f":1: {ALLOW} expires: 'soon' is not a day; write it as in expires = 2027-06-30"),
        (entry(rule="'PA999'"), f":1: {ALLOW} rule: no rule matches 'PA999'; run \"precaudit rules\" for the list"),
        (entry(rules="'PA301'"), f":1: {ALLOW} rules: unknown key; did you mean 'rule'?"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["trace", "check"])
def test_what_cannot_be_meant_is_one_line_with_the_way_out(desk: Desk, text: str, line: str, command: str) -> None:
    desk.write("train.py", WRONG)
    desk.write("pyproject.toml", text + "\n")
    refused = desk.precaudit(command, "train.py")
    assert refused.ours == [f"precaudit: pyproject.toml{line}"]
    assert refused.code == 2
    assert refused.stdout == ""


def test_a_broken_profile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for text, what in (
        ("title = 3", "title: a text is expected"),
        ('title = "x"\n[[allow]]\nloss = ["bfloat16"]', "because: a text is expected"),
        ('title = "x"\nallows = 1', "allows: no such key; allowed: title, references, allow"),
    ):
        path.write_text(text)
        with pytest.raises(allowed.RuleError) as caught:
            allowed.read_profile(path)
        assert str(caught.value).endswith(f"mine.toml {what}")
    assert (rules_folder() / "profiles" / "contracts").is_dir()
    assert isinstance(contract(loss="bfloat16").clauses[0], Clause)
