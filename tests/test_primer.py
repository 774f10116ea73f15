"""The primer's figures and plots are computed. `python tests/test_primer.py` writes them anew, to be read in review."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from precaudit import rulebook
from precaudit.model.vocabulary import FLOATING

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "primer.md"
BLOCK = re.compile(r"(<!-- (\w+) -->\n)(.*?)(<!-- /\2 -->)", re.DOTALL)
FORMATS = ("float32", "bfloat16", "float16", "float8_e5m2", "float8_e4m3fn")
RATES = [10.0**-exponent for exponent in (2, 3, 4, 5, 6)]
DASHES = {"bfloat16": "", "float16": ' stroke-dasharray="7 4"', "float32": ' stroke-dasharray="2 3"'}
COLORS = {"bfloat16": "#d98200", "float16": "#b5508f", "float32": "#0072b2"}


def lost(dtype: torch.dtype, rate: float) -> float:
    """Of weights of a usual size, how many an update of this size leaves exactly as they were."""
    torch.manual_seed(0)
    weights = (torch.randn(100_000) * 0.05).to(dtype)
    update = torch.where(torch.rand(100_000) < 0.5, -rate, rate)
    return ((weights.float() + update).to(dtype) == weights).float().mean().item()


def sums_to(dtype: torch.dtype, ones: int) -> float:
    """What adding so many ones comes to, one after the other."""
    total = torch.zeros((), dtype=dtype)
    for _ in range(ones):
        total += 1
    return total.item()


def formats() -> str:
    rows = [
        "| Format | Bits | Digits kept (binary) | Largest | Smallest with all digits | Smallest | Whole numbers up to |"
    ]
    rows.append("|---|--:|--:|--:|--:|--:|--:|")
    for name in FORMATS:
        f = FLOATING[name]
        rows.append(
            f"| {name} | {f.bits} | {f.mantissa_bits + 1} | {f.max:.5g} | {f.smallest_normal:.3g} "
            f"| {f.smallest_subnormal:.3g} | {f.max_exact_integer:,} |"
        )
    return "\n".join(rows) + "\n"


def updates() -> str:
    rows = ["| Size of the update | bfloat16 | float16 | float32 |", "|--:|--:|--:|--:|"]
    for rate in RATES:
        shares = (lost(getattr(torch, name), rate) for name in ("bfloat16", "float16", "float32"))
        rows.append(f"| {rate:g} | " + " | ".join(f"{share:.1%}".replace("%", " %") for share in shares) + " |")
    return "\n".join(rows) + "\n\n![Share of weights that an update does not change](primer/updates.svg)\n"


def counts() -> str:
    rows = ["| Ones added | float32 | float16 | bfloat16 |", "|--:|--:|--:|--:|"]
    for ones in (100, 256, 300, 2048, 4000):
        held = (f"{sums_to(getattr(torch, name), ones):,.0f}" for name in ("float32", "float16", "bfloat16"))
        rows.append(f"| {ones:,} | " + " | ".join(held) + " |")
    return "\n".join(rows) + "\n"


def roles() -> str:
    rows = ["| Role | Dtype | Of the source |", "|---|---|---|"]
    for row in rulebook.load().roles.values():
        rows.append(f"| {row.label} | {'any' if row.wanted == ['any'] else row.wanted[0]} | {row.section} |")
    return "\n".join(rows) + "\n"


def memory() -> str:
    """Bytes for each parameter under AdamW, by what is kept."""
    size = {name: FLOATING[name].bits // 8 for name in FORMATS}
    wide, low = size["float32"], size["bfloat16"]
    table = {
        "all float32": (0, wide, wide, 2 * wide),
        "autocast: float32 weights, cast for each use": (0, wide, wide, 2 * wide),
        "bfloat16 weights, float32 masters and state": (low, wide, low, 2 * wide),
        "pure bfloat16": (0, low, low, 2 * low),
    }
    rows = [
        "| AdamW, bytes for each parameter | Weights computed with | Weights updated | Gradient | State | Together |"
    ]
    rows.append("|---|--:|--:|--:|--:|--:|")
    rows += [
        f"| {name} | {' | '.join(str(n) if n else '–' for n in held)} | {sum(held)} |" for name, held in table.items()
    ]
    return "\n".join(rows) + "\n"


def plot() -> str:
    """Share of lost updates over the size of the update, a line for each format."""
    left, top, width, height = 56, 14, 420, 190
    x = lambda at: left + width * at / (len(RATES) - 1)  # noqa: E731
    y = lambda share: top + height * (1 - share)  # noqa: E731
    drawn = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawn.append(f'<line x1="{left}" x2="{left + width}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#8888" />')
        drawn.append(f'<text x="{left - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    drawn += [
        f'<text x="{x(at):.1f}" y="{top + height + 20}" text-anchor="middle">{rate:g}</text>'
        for at, rate in enumerate(RATES)
    ]
    drawn.append(f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">size of the update</text>')
    for name, dash in DASHES.items():
        shares = [lost(getattr(torch, name), rate) for rate in RATES]
        drawn.append(_line(name, [(x(at), y(share)) for at, share in enumerate(shares)], dash))
        drawn.append(f'<text x="{left + width + 8}" y="{y(shares[-1]) + 4:.1f}" fill="{COLORS[name]}">{name}</text>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 260" role="img" font-family="system-ui,sans-serif" '
        'font-size="13" fill="#777"><title>Share of weights that an update leaves exactly as they were</title>'
        f"{''.join(drawn)}</svg>\n"
    )


def _line(name: str, points: Sequence[tuple[float, float]], dash: str) -> str:
    at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{at}" fill="none" stroke="{COLORS[name]}" stroke-width="3"{dash} />'


PARTS = {"formats": formats, "updates": updates, "counts": counts, "roles": roles, "memory": memory}


def written(text: str) -> str:
    return BLOCK.sub(lambda match: match[1] + PARTS[match[2]]() + match[4], text)


def test_every_figure_of_the_primer_is_computed() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert {match[1] for match in BLOCK.findall(text)} == set(PARTS)
    assert written(text) == text, "run: python tests/test_primer.py"


def test_the_plot_is_of_the_same_figures() -> None:
    assert (DOCS / "primer" / "updates.svg").read_text() == plot(), "run: python tests/test_primer.py"


def test_the_chinese_start_page_has_the_same_table_of_roles() -> None:
    """Each role with the dtype that the table wants."""
    text = (DOCS / "start.zh-CN.md").read_text(encoding="utf-8")
    for row in rulebook.load().roles.values():
        wanted = "不限" if row.wanted == ["any"] else row.wanted[0]
        assert re.search(rf"^\| {re.escape(row.label)} \| .+ \| {wanted} \|$", text, re.MULTILINE), row.label


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "primer" / "updates.svg").write_text(plot(), encoding="utf-8")
