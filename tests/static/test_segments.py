"""Leaving out what no finding can depend on changes no finding."""

from __future__ import annotations

import gc
import inspect
import re
import textwrap
import weakref
from collections.abc import Sequence
from pathlib import Path

import libcst as cst
import pytest
from libcst import matchers

from precaudit.model.vocabulary import Fact
from precaudit.static.analyze import analyze
from precaudit.static.reach.outline import Outline
from precaudit.static.reach.words import WORDS, code_of, has_literals, may_hold_a_finding, trains, triggers
from precaudit.static.source import Source

HERE = Path(__file__).parent
SCRIPTS = [
    path
    for path in (*sorted((HERE / "snippets").glob("*.py")), *sorted((HERE.parents[1] / "fixtures").glob("PA*/*.py")))
    if may_hold_a_finding(path.read_bytes())
]
UNRELATED = "\n\n" + inspect.getsource(textwrap) + "\n\n" + inspect.getsource(inspect)
"""Real code that has nothing to do with training."""


def places(facts: list[Fact]) -> list[tuple[object, ...]]:
    return sorted((str(f.kind), str(f.role), f.dtype, f.site.line if f.site else 0, str(f.attrs)) for f in facts)


@pytest.mark.parametrize("path", SCRIPTS[::3], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_script_shortened_says_what_the_whole_script_says(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    whole = Source(path.name, text, path, whole=True)
    facts, _ = analyze(whole)
    shortened, _ = analyze(Source(path.name, text, path))
    assert places(shortened) == places(facts)


@pytest.mark.parametrize("path", SCRIPTS[::24], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_unrelated_code_around_a_script_is_left_out_and_lines_stay_right(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    alone, _ = analyze(Source(path.name, text, path))
    around = Source(path.name, text + UNRELATED, path)
    found, _ = analyze(around)
    assert places(found) == places(alone)
    assert len(names(around)) < len(names(Source(path.name, text + UNRELATED, path, whole=True))) / 2


def names(source: Source) -> list[str]:
    """The names in a file, without the bodies that wait."""
    return [node.value for node in matchers.findall(source.tree, matchers.Name()) if isinstance(node, cst.Name)]


def parts(text: str) -> list[tuple[str, str, str]]:
    return [(part.kind, part.owner, part.name) for part in Outline(textwrap.dedent(text)).parts]


def test_a_file_is_divided_at_definitions_not_at_what_stands_in_strings() -> None:
    text = '''
        X = """
        def not_a_function():
        """
        @decorated(
            1,
        )
        def f(a,
              b):
            return """
        class Not:
        """
        class A(B):
            """Text."""
            y = 1

            @property
            def g(self): return 1
    '''
    assert parts(text) == [
        ("statement", "", ""),
        ("statement", "", "X"),
        ("function", "", "f"),
        ("class", "", "A"),
        ("class", "", "A"),
        ("method", "A", "g"),
    ]


def test_a_class_of_which_only_the_head_is_needed_still_parses() -> None:
    text = "import torch\nclass Base:\n    def helper(self):\n        return 1\n" + "# line\n" * 60
    text += "class Model(Base):\n    def forward(self, x):\n        return x.to(torch.float16)\n"
    found = names(Source("x.py", text))
    assert "Base" in found
    assert "helper" not in found


WORK = "".join(f"    y{n} = x * {n}\n" for n in range(30))


OVERFLOWS = "x.masked_fill(x > 0, -1e9)"


def test_a_body_is_parsed_when_its_function_runs() -> None:
    text = f"import torch\ndef f(\n    x,\n):  # noqa\n\n # text\n{WORK}    return g(x.half())\n"
    text += f"def g(x):\n{WORK}    return {OVERFLOWS}\n"
    text += f"def unused(x):\n{WORK}    return x.half()\n" + "model = f(torch.ones(3))\n"
    source = Source("x.py", text)
    f, g, unused = (node for node in source.tree.body if isinstance(node, cst.FunctionDef))
    assert "masked_fill" not in names(source)
    (fact,) = analyze(source)[0]
    assert fact.site is not None
    assert text.splitlines()[fact.site.line - 1][fact.site.column - 1 :] == OVERFLOWS
    assert [len(source.body(function)) for function in (f, g, unused)] == [31, 31, 31]
    assert source.body(f) is source.body(f)
    assert source.code(g) == f"def g(x):\n{WORK}    return {OVERFLOWS}\n"


def test_a_file_that_was_divided_where_it_should_not_have_been_is_read_whole() -> None:
    text = f"import torch\ndef f(x):\n{WORK}    y = '\\\ndef g():'\n    return {OVERFLOWS}\n"
    text += "f(torch.ones(3).half())\n" + "# line\n" * 60
    assert [fact.kind for fact in analyze(Source("x.py", text))[0]] == ["constant"]


LONG = "# line\n" * 400


def followed(text: str) -> tuple[list[str], list[str]]:
    """The functions whose bodies were asked for, and the kinds of the Facts."""
    source, asked = Source("x.py", text), []
    body = source.body

    def noted(function: cst.FunctionDef) -> Sequence[object]:
        asked.append(function.name.value)
        return body(function)

    source.body = noted  # type: ignore[method-assign]
    facts, _ = analyze(source)
    return asked, [fact.kind.value for fact in facts]


MODEL = f"""
import torch
class Model(torch.nn.Module):
    def forward(self, x):
        return self.late(self.lower(self.early(x)))
    def early(self, x):
        return x + 1
    def lower(self, x):
        return x.half()
    def late(self, x):
        return {OVERFLOWS}
"""


def test_a_long_file_that_trains_nothing_is_followed_from_its_first_low_word_on() -> None:
    assert followed(MODEL + LONG) == (["forward", "lower", "late"], ["constant"])


@pytest.mark.parametrize("rest", ["", LONG + "def train(loss):\n    loss.backward()\n"], ids=["short", "trains"])
def test_any_other_file_is_followed_from_the_beginning(rest: str) -> None:
    assert followed(MODEL + rest) == (["forward", "early", "lower", "late"], ["constant"])


NESTED = f"""
import torch
if torch.cuda.is_available():
    from kernels import lower
else:
    {{loose}}
    def lower(x):
        return x.half()
def early(x):
    return x + 1
def late(x):
    return {OVERFLOWS}
def use(x):
    return late(lower(early(x)))
"""


def test_a_low_word_in_a_function_under_a_condition_belongs_to_that_function() -> None:
    assert followed(NESTED.format(loose="pass") + LONG) == (["use", "lower", "late"], ["constant"])


def test_a_low_word_in_a_condition_itself_may_matter_to_everything() -> None:
    assert followed(NESTED.format(loose="LOW = torch.float16") + LONG) == (
        ["use", "early", "lower", "late"],
        ["constant"],
    )


def test_a_method_whose_name_many_have_is_followed_for_its_class() -> None:
    text = f"""
import torch
class Other(torch.nn.Module):
    def forward(self, x):
        return x + 1
class Model(torch.nn.Module):
    def __init__(self):
        self.other = Other()
    def forward(self, x):
        return self.masked(self.lower(self.other(x)))
    def lower(self, x):
        return x.half()
    def masked(self, x):
        return {OVERFLOWS}
"""
    assert followed(text + LONG) == (["__init__", "forward", "lower", "masked"], ["constant"])
    text = text.replace("self.lower(self.other(x))", "self.other(self.lower(x))")
    assert followed(text + LONG) == (["__init__", "forward", "lower", "forward", "masked"], ["constant"])


@pytest.mark.parametrize(
    "line",
    [
        "loss.backward()",
        "accelerator.backward(loss)",
        "scaler.step(optimizer)",
        "from torch import optim",
        "from torch.optim import AdamW",
        "torch.optim.SGD(w)",
        "class Lion(Optimizer):",
        'TrainingArguments(optim="adamw_torch")',
    ],
)
def test_words_that_train(line: str) -> None:
    assert trains(line.encode())


@pytest.mark.parametrize("line", ["def backward(ctx, grad):", "optimal = 1", "x.optimize()", "is_optimum_available()"])
def test_words_that_train_nothing(line: str) -> None:
    assert not trains(line.encode())


def test_what_the_constructor_made_low_is_followed_into_every_method() -> None:
    text = f"""
import torch
class Model(torch.nn.Module):
    def __init__(self):
        self.table = torch.zeros(3, dtype=torch.float16)
    def forward(self):
        return self.masked(self.table)
    def masked(self, x):
        return {OVERFLOWS}
"""
    assert followed(text + LONG) == (["__init__", "forward", "masked"], ["constant"])


def test_a_tree_is_freed_without_the_garbage_collector() -> None:
    text = f"import torch\ndef f(x):\n{WORK}    return x.half()\ny = f(torch.ones(3))\n" + LONG
    gc.disable()
    try:
        source = Source("x.py", text)
        analyze(source)
        tree = weakref.ref(source)
        del source
        assert tree() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "line",
    [
        "if x.dtype == torch.bfloat16:",
        "if x.dtype is not torch.float16:",
        "assert dtype not in (torch.float16, torch.bfloat16)",
        'raise ValueError("only float16 and bfloat16 are supported")',
        "with maybe_autocast(device, enabled=False):",
        "x = 1  # float16",
        'color = "#fff"',
    ],
)
def test_words_that_make_nothing_low_are_no_reason_to_parse(line: str) -> None:
    assert triggers(code_of(line)) == []


@pytest.mark.parametrize("quotes", ['"""', "'''"])
def test_documentation_is_no_reason_to_parse_nor_does_it_hide_what_is(quotes: str) -> None:
    text = f"def f(x):\n    {quotes}Makes it\n    torch.float16, or so.\n    {quotes}\n    return x"
    assert not may_hold_a_finding(text.encode())
    assert may_hold_a_finding((text + ".half()").encode())
    assert may_hold_a_finding(f"x.half()\n{text}\n".encode())


@pytest.mark.parametrize(
    "line",
    [
        "model.to(torch.bfloat16)",
        "for dtype in (torch.float16, torch.float32):",
        'dtype = "float16"',
        'x = f(color="#fff", dtype=torch.float16)',
        "with torch.autocast('cuda'):",
        "model.half()",
        "args = TrainingArguments(fp16=True)",
        'config = {"bf16": {"enabled": True}}',
    ],
)
def test_words_that_a_finding_can_start_from_are(line: str) -> None:
    assert triggers(code_of(line)) != []


@pytest.mark.parametrize("pattern", WORDS)
def test_what_a_word_matches_is_never_missed_by_the_search_for_substrings(pattern: str) -> None:
    examples = """
        x.half() | torch.half | 'half' | torch.float8_e4m3fn | torch.autocast( | GradScaler() | MixedPrecision(
        'bf16-true' | fp16_compress_hook | bf16_compress_hook | bf16_master_weights_and_grads | bf16=True
        precision="fp16" | torch.bfloat16 | Accelerator(mixed_precision="bf16")
        precision='16-mixed' | load_in_4bit=True | load_in_8bit | allow_fp16_x | fp16 = True | fp16=dict( | bf16=dict(
        "fp16": 1 | 'bf16' : 1 | c['fp16'] = 1 | c["bf16"]=1
        f(amp_mode="amp") | f(amp_mode = 'amp') | supervised_training_step_amp(model)
    """.replace("\n", "|").split("|")
    found = [text for text in examples if re.search(pattern, text)]
    assert found
    assert all(has_literals(text.encode()) and triggers(text) for text in found)
