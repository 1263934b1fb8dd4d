"""Pieces of the report page that know HTML and nothing about runs: tables, cards, legends, numbers as text."""

from collections.abc import Iterable
from html import escape

from florilegium.report.charts import swatch
from florilegium.report.style import FLOWER, STYLE

MB = 2**20  # the paper's megabyte


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def plain_number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def size(count: float | None) -> str:
    """Bytes for a reader, in the paper's units of 2^10 and 2^20."""
    if count is None:
        return "–"
    if count >= MB / 10:
        return f"{count / MB:.2f} MB"
    return f"{count / 1024:.1f} kB" if count >= 1024 else f"{count:.0f} B"


def duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def difference(value: float, against: float) -> str:
    """`+2.3` points, coloured by its sign."""
    points = 100 * (value - against)
    kind = "up" if points > 0.05 else "down" if points < -0.05 else ""
    return f'<span class="{kind}">{points:+.1f}</span>'.replace("-", "−")


def card(title: str, value: str, facts: Iterable[tuple[str, str]], kind: str = "") -> str:
    """A headline figure; `value` and the second of each fact are HTML."""
    told = "".join(f"<dt>{escape(name)}</dt><dd>{fact}</dd>" for name, fact in facts)
    pair = " pair" if kind == "wide" else ""
    return (
        f'<div class="card {kind}"><h3>{escape(title)}</h3><div class="value{pair}">{value}</div>'
        f"{f'<dl>{told}</dl>' if told else ''}</div>"
    )


def table(head: list[str], rows: list[list[str]], main: Iterable[int] = (), words: Iterable[int] = ()) -> str:
    """A table that scrolls by itself on a narrow screen; cells are HTML, `words` the columns of running text."""
    main, words = set(main), set(words)

    def cells(tag: str, row: list[str]) -> str:
        return "".join(f"<{tag}{' class=words' if n in words else ''}>{cell}</{tag}>" for n, cell in enumerate(row))

    body = "".join(f"<tr{' class=main' if n in main else ''}>{cells('td', row)}</tr>" for n, row in enumerate(rows))
    top = cells("th", [escape(h) for h in head])
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def legend(rows: Iterable[tuple[str, int, bool]]) -> str:
    """(name, colour, is a level) of each line of a chart."""
    return (
        '<div class="legend">'
        + "".join(f"<span>{swatch(colour, level)}{escape(name)}</span>" for name, colour, level in rows)
        + "</div>"
    )


def section(title: str, note: str, body: str, level: int = 2) -> str:
    """A part of the page with a heading of this level; nothing at all when it has no body."""
    if not body:
        return ""
    return f'<section><h{level}>{escape(title)}</h{level}><p class="note">{note}</p>{body}</section>'


def document(title: str, header: str, body: str, foot: str, style: str = "", script: str = "") -> str:
    """One self-contained page: no request, and no script but the one that is given."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body><header><div class=brand>{FLOWER}"
        f'<span>Florilegium</span></div>{header}</header><main id="main">{body}</main><footer>{foot}</footer>'
        f"{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )
