"""docs/performance.md and its picture, made from bench/results/*.json: `python bench/all.py --page` writes them."""

from __future__ import annotations

from html import escape
from typing import Any

from bench import board
from bench.board import BARS, Bar

PAGE = board.ROOT / "docs" / "performance.md"
PICTURE = board.ROOT / "docs" / "pictures" / "performance.svg"
INTRODUCTION = """# Performance

<!-- Written by `python bench/all.py --page` from bench/results/*.json. Do not edit it by hand. -->

`make bench` measures the figures of this page on your machine, in under 20 minutes, and writes the page again. It
leaves out the scripts that need more time, a GPU or another program. They are run by name, as in
`python bench/all.py FILE`: {asked}.

Almost all figures are ratios of two measurements in one run, so that another machine should give about the same. Each
has a **bar**, the number that it should reach.

The peer is the package `fluke-fl` 0.8.1, in an environment of its own (`bench/peers/README.md`).
HtFLlib is no package: its figure is measured where you have a clone of it (the same page).
"""
WIDE, LINE, LEFT, MOST = 760, 30, 430, 1.6  # of the picture; shares above MOST are cut
NARROW = "\u00a0"  # a space that ends no line: a narrow column would part the sign from its number
INSIDE = 0.4  # from this share on, the number stands in the bar


def rows() -> list[tuple[Bar, float | None, dict[str, Any]]]:
    """Each figure with its value (None: not measured) and the file that it is from."""
    found = [(bar, board.read(bar.script)) for bar in BARS]
    return [(bar, bar.value(result.get("found", {})), result) for bar, result in found]


def shown(value: float, unit: str) -> str:
    if value < 0:
        return "−" + shown(-value, unit)
    digits = 0 if abs(value) >= 100 else 3 if abs(value) < 0.1 else 2
    return f"{value:,.{digits}f}" + (f" {unit}" if unit else "")


def verdict(bar: Bar, value: float | None) -> str:
    return "not measured" if value is None else "met" if bar.met(value) else "missed"


def text_table() -> str:
    """The figures for a terminal."""
    lines = []
    for bar, value, result in rows():
        sign = "≥" if bar.higher else "≤"
        measured = "–" if value is None else shown(value, bar.unit)
        mark = " (provisional)" if result.get("provisional") else ""
        bound = f"{sign} {shown(bar.bar, bar.unit)}"
        lines.append(f"{verdict(bar, value):12} {measured:>10}  {bound:>12}  {bar.title}{mark}")
    return "\n".join(lines)


def markdown() -> str:
    """The page."""
    lines = ["| figure | measured | bar | verdict |", "|---|---:|---:|---|"]
    notes, absent, provisional = [], [], False
    for bar, value, result in rows():
        sign = "≥" if bar.higher else "≤"
        measured = "–" if value is None else shown(value, bar.unit)
        if result.get("provisional"):
            measured, provisional = f"{measured} *", True
        said = verdict(bar, value).replace("missed", "**missed**")
        lines.append(f"| {bar.title} | {measured} | {sign}{NARROW}{shown(bar.bar, bar.unit)} | {said} |")
        if value is not None and not bar.met(value):
            notes.append(f"- **{bar.title}** ({shown(value, bar.unit)}): {bar.why or 'no reason is known yet.'}")
        if value is None:
            absent.append(f"- **{bar.title}**: {not_measured(bar)}")
    asked = ", ".join(f"`{script.file}`" for script in board.scripts() if script.asked)
    parts = [INTRODUCTION.format(asked=asked), "\n".join(lines), ""]
    if provisional:
        parts.append(
            "\\* Provisional: the machine had other work when this was measured (see the table below). "
            "`make bench` on a quiet machine replaces it.\n"
        )
    parts.append(
        "![Each figure as a share of its bar](pictures/performance.svg)\n\n"
        "The picture shows how much of its bar each figure uses up: left of the line is better than the bar.\n"
    )
    if notes:
        parts.append("## What misses its bar, and why\n\n" + "\n".join(notes) + "\n")
    if absent:
        parts.append("## What is not measured, and why\n\n" + "\n".join(absent) + "\n")
    parts.append("## How each was measured\n\n" + measured_how())
    return "\n".join(parts)


def not_measured(bar: Bar) -> str:
    """What a figure that is not there needs, and how it is measured."""
    named = f"`python bench/all.py {bar.script.file}`"
    how = f"{named} measures it" + ("; `make bench` leaves it out, for it takes long" if bar.script.asked else "")
    return f"{bar.missing} {how}.".strip()


def measured_how() -> str:
    """The scripts, when and where they ran."""
    lines = ["| script | date | seconds | busy cores before |", "|---|---|---:|---:|"]
    machines: dict[str, None] = {}
    for script in board.scripts():
        command = " ".join(["python", f"bench/{script.file}", *script.arguments])
        result = board.read(script)
        if not result:
            lines.append(f"| `{command}` | not measured | | |")
            continue
        lines.append(f"| `{command}` | {result['date']} | {result['seconds']:.0f} | {result['load']:.1f} |")
        m = result["machine"]
        libraries = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        told = f"{m['processor']}, {m['cores']} cores, {m['memory_gib']} GiB, {m['system']}, Python {m['python']}"
        machines[f"- {told}; {libraries}"] = None
    return "\n".join(lines) + "\n\nMachines and versions:\n\n" + "\n".join(machines) + "\n"


def picture() -> str:
    """A bar for each figure that was measured, as a share of its bar."""
    held = [(bar, bar.share(value), value) for bar, value, _ in rows() if value is not None]
    high, scale = LINE * len(held) + 44, (WIDE - LEFT - 80) / MOST
    one = LEFT + scale
    drawn = []
    for n, (bar, share, value) in enumerate(held):
        y, wide = 10 + LINE * n, scale * min(max(share, 0.01), MOST)
        kind = "met" if bar.met(value) else "missed"
        drawn.append(
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(short(bar.title))}</text>'
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{wide:.1f}" height="20" rx="3"/>'
            f"{number(LEFT + wide, y + 15, share, kind)}"
        )
    style = (
        "text{font:12px system-ui,sans-serif;fill:#333}.in{fill:#fff}.met{fill:#0b7d5c}.missed{fill:#c2500a}"
        ".bar{stroke:#333;stroke-width:1.5;stroke-dasharray:4 3}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}.in{fill:#111}.met{fill:#3fcf9f}.missed{fill:#f59652}.bar{stroke:#ddd}}"
    )
    label = "; ".join(f"{bar.title}: {share:.2f} of its bar" for bar, share, _ in held)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {high}" role="img" aria-label="{escape(label)}">'
        f"<style>{style}</style>{''.join(drawn)}"
        f'<line class="bar" x1="{one:.1f}" x2="{one:.1f}" y1="2" y2="{high - 26}"/>'
        f'<text x="{one:.1f}" y="{high - 8}" text-anchor="middle">the bar</text></svg>\n'
    )


def number(end: float, y: float, share: float, kind: str) -> str:
    """The share, inside the bar that ends there, or behind a short one: so the line of 1 never crosses a number."""
    said = "below 0" if share < 0 else f"{share:.2f}{'' if kind == 'met' else ' ✗'}"
    if share < INSIDE:
        return f'<text x="{end + 6:.1f}" y="{y}">{said}</text>'
    return f'<text class="in" x="{end - 6:.1f}" y="{y}" text-anchor="end">{said}</text>'


def short(title: str, most: int = 62) -> str:
    """A title as plain text of one line."""
    title = title.replace("`", "")
    return title if len(title) <= most else title[: most - 1].rstrip() + "…"


def write() -> None:
    """Write page and picture."""
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(markdown(), encoding="utf-8")
