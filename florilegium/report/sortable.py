"""Tables that a reader can sort, with a mouse, a keyboard or a screen reader; without scripts they are plain tables.

The pattern is that of the W3C's ARIA guide: a button in each column head, `aria-sort` on the column that is sorted,
and a line that says aloud what happened. A dash has no value and always comes last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """What a cell shows, as HTML, and what it is sorted by: a number, a text, or None for a dash."""

    shown: str
    value: float | str | None = None


def words(text: str, shown: str | None = None) -> Cell:
    """A cell of text; `shown` is its HTML where that is more than the text."""
    return Cell(escape(text) if shown is None else shown, text)


def number(value: float | None, shown: str) -> Cell:
    """A cell of a number; `shown` is its HTML."""
    return Cell(shown, value)


def table(name: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], main: Iterable[int] = ()) -> str:
    """A table with the name `name`; the first cell of each row is its head. `main` are the rows that stand out."""
    main = set(main)
    numeric = [
        all(isinstance(row[n].value, int | float) or row[n].value is None for row in rows) for n in range(len(head))
    ]
    top = "".join(
        f'<th scope="col"{"" if numeric[n] else " class=words"} data-kind="{"number" if numeric[n] else "words"}">'
        f'<button type="button">{escape(title)}<span class="arrow" aria-hidden="true"></span></button></th>'
        for n, title in enumerate(head)
    )
    body = "".join(
        f"<tr{' class=main' if n in main else ''}>{''.join(_cell(k, c, numeric[k]) for k, c in enumerate(row))}</tr>"
        for n, row in enumerate(rows)
    )
    label = escape(name)
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table class="sortable">'
        f'<caption class="heard">{label}. The buttons in the column heads sort the rows.</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
        '<p class="heard" role="status"></p>'
    )


def _cell(place: int, cell: Cell, numeric: bool) -> str:
    tag, scope = ("th", ' scope="row"') if place == 0 else ("td", "")
    kind = "" if numeric else " class=words"
    value = "" if cell.value is None else f' data-value="{escape(str(cell.value))}"'
    return f"<{tag}{scope}{kind}{value}>{cell.shown}</{tag}>"


STYLE = (
    """
.heard{position:absolute;width:1px;height:1px;margin:-1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.sortable th button{font:inherit;color:inherit;background:none;border:0;padding:4px 0;margin:-4px 0;cursor:pointer;
text-align:inherit;white-space:nowrap}
.sortable th button:hover{color:var(--ink)}
a:focus-visible,button:focus-visible,.scroll:focus-visible{outline:3px solid var(--s0);outline-offset:2px}
.arrow{display:inline-block;width:1em;text-align:center}
.arrow::after{content:"↕";opacity:.4}
[aria-sort=ascending] .arrow::after{content:"↑";opacity:1}
[aria-sort=descending] .arrow::after{content:"↓";opacity:1}
.sortable tbody th{font-size:.9rem;color:var(--ink);font-weight:400;text-align:left;vertical-align:top;
position:sticky;left:0;background:var(--card);min-width:min(13em,38vw);max-width:60vw;white-space:normal}
.sortable tr.main th,.sortable tr.main td{background:var(--bed)}
.sortable tr.main th{font-weight:600}
.sortable tr:last-child th{border-bottom:0}
.sortable th .swatch{display:inline-block;vertical-align:-1px;margin-right:8px}
.contents{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;padding:0;margin:26px 0 0;font-size:.92rem}
.contents a,.skip{color:var(--leaf)}
.skip{position:absolute;left:-999px}.skip:focus{left:24px;top:8px;background:var(--card);padding:6px 12px;z-index:2}
section>h3{font-family:"Iowan Old Style","Palatino Linotype",Palatino,"URW Palladio L",Georgia,"DejaVu Serif",serif;
font-size:1.3rem}
h2.group{font-size:1.7rem;margin:64px 0 0;padding-top:18px;border-top:1px solid var(--rule)}
@media print{.arrow{display:none}.contents{display:none}}
"""
).replace("\n", "")

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], said = table.parentElement.nextElementSibling;
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const numbers = head.dataset.kind === "number", now = head.getAttribute("aria-sort");
    const way = now ? (now === "ascending" ? "descending" : "ascending") : (numbers ? "descending" : "ascending");
    const sign = way === "ascending" ? 1 : -1, value = row => row.cells[column].dataset.value;
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return sign * (numbers ? x - y : x.localeCompare(y, undefined, {numeric: true}));
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", way);
    said.textContent = `${head.textContent}: ${way}`;
  }));
}
"""
