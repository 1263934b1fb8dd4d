"""Charts as inline SVG. Colours are CSS classes `s0`, `s1`... that the page defines for light and for dark.

A series has a marker and a dash of its own besides its colour, so that a chart can be read without colours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

W, H, LEFT, RIGHT, TOP, BOTTOM = 480, 270, 46, 54, 12, 38
DASHES = ("", "7 4", "2 3", "9 3 2 3", "1 4", "12 4", "5 2 1 2 1 2", "3 6")


@dataclass(frozen=True)
class Axis:
    """What lies below a chart: its name, and whether it counts in whole numbers."""

    name: str
    whole: bool = False


ROUND = Axis("round", whole=True)


@dataclass(frozen=True)
class Series:
    """One line of a chart: (x, value) points; a single point is drawn as a level across the chart.

    `errors` are the half lengths of the bars through the points, None for a point without one; () draws none.
    """

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    errors: Sequence[float | None] = ()

    def ends(self) -> list[float]:
        """All values that the chart must show: of the points and of the ends of their bars."""
        bars = zip(self.points, self.errors, strict=False)
        return [v for _, v in self.points] + [v + s * e for (_, v), e in bars if e is not None for s in (-1, 1)]


def figure(value: float, percent: bool, digits: int | None = None) -> str:
    """A fraction as per cent with one decimal, anything else with three."""
    digits = (1 if percent else 3) if digits is None else digits
    return f"{100 * value if percent else value:.{digits}f}"


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that span [low, high], about `about` of them."""
    if high - low < 1e-9:
        low, high = low - abs(low) * 0.1 - 1e-3, high + abs(high) * 0.1 + 1e-3
    rough = (high - low) / about
    unit = 10 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough - 1e-12)
    first = math.floor(low / step + 1e-9)
    return [round((first + n) * step, 10) for n in range(math.ceil(high / step - 1e-9) - first + 1)]


def line_chart(title: str, series: list[Series], percent: bool = True, axis: Axis = ROUND) -> str:
    """An SVG of the series over rounds or another axis; percentages are drawn from fractions."""
    places = sorted({x for s in series for x, _ in s.points})
    values = [v for s in series for v in s.ends()]
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    first, final = places[0], places[-1] if places[-1] > places[0] else places[0] + 1

    def x(r: float) -> float:
        return LEFT + (r - first) / (final - first) * (W - LEFT - RIGHT)

    def y(v: float) -> float:
        return H - BOTTOM - (v - low) / (high - low) * (H - TOP - BOTTOM)

    drawn = [
        f'<line class="rule" x1="{LEFT}" x2="{W - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{tick_text(t, ticks, percent)}</text>'
        for t in ticks
    ]
    below = [t for t in nice_ticks(first, final, 8) if (t == int(t) or not axis.whole) and first <= t <= final]
    drawn += [f'<text x="{x(t):.1f}" y="{H - BOTTOM + 18}" text-anchor="middle">{t:g}</text>' for t in below]
    middle = (LEFT + W - RIGHT) / 2
    drawn.append(f'<text class="axis" x="{middle}" y="{H - 4}" text-anchor="middle">{escape(axis.name)}</text>')
    for s in reversed(series):  # the first series lies on top
        drawn.append(one_line(s, x, y, (LEFT, W - RIGHT), percent, axis))
    ends = sorted(((y(s.points[-1][1]), s) for s in series), key=lambda e: e[0])
    for place, (_, s) in zip(apart([e[0] for e in ends], 13, H - BOTTOM), ends, strict=True):
        drawn.append(
            f'<text class="end s{s.colour}" x="{W - RIGHT + 9}" y="{place + 4:.1f}">'
            f"{figure(s.points[-1][1], percent)}</text>"
        )
    told = "; ".join(f"{s.name} {figure(s.points[-1][1], percent)}" for s in series)
    label = escape(f"{title}, last values: {told}")
    return f'<svg class="chart" viewBox="0 0 {W} {H}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'


def tick_text(tick: float, ticks: list[float], percent: bool) -> str:
    """A tick with as many decimals as its neighbours need."""
    step = (ticks[1] - ticks[0]) * (100 if percent else 1)
    digits = next((d for d in range(6) if abs(step * 10**d - round(step * 10**d)) < 1e-6), 6)
    return figure(tick, percent, digits)


def one_line(s: Series, x, y, ends: tuple[float, float], percent: bool, axis: Axis = ROUND) -> str:
    dash = f' stroke-dasharray="{DASHES[s.colour % len(DASHES)]}"' if DASHES[s.colour % len(DASHES)] else ""
    if len(s.points) == 1:
        r, v = s.points[0]
        place = f'x1="{ends[0]}" x2="{ends[1]}" y1="{y(v):.1f}" y2="{y(v):.1f}"'
        return (
            f'<line class="line level s{s.colour}" {place}{dash}>'
            f"<title>{escape(s.name)}, {escape(axis.name)} {r:g}: {figure(v, percent)}</title></line>"
        )
    path = " ".join(f"{x(r):.1f},{y(v):.1f}" for r, v in s.points)
    marks = "".join(
        f"<g>{marker(s.colour, x(r), y(v))}"
        f"<title>{escape(s.name)}, {escape(axis.name)} {r:.4g}: {figure(v, percent)}</title></g>"
        for r, v in s.points
    )
    bars = "".join(
        f'<line class="error" x1="{x(r):.1f}" x2="{x(r):.1f}" y1="{y(v - e):.1f}" y2="{y(v + e):.1f}"/>'
        for (r, v), e in zip(s.points, s.errors, strict=False)
        if e
    )
    return f'<g class="s{s.colour}">{bars}<polyline class="line" points="{path}"{dash}/>{marks}</g>'


def marker(colour: int, x: float, y: float, r: float = 3.6) -> str:
    """A circle, square, triangle or diamond."""
    if colour % 4 == 0:
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    shapes: dict[int, list[tuple[float, float]]] = {
        1: [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        2: [(0, -1.3), (1.2, 1), (-1.2, 1)],
        3: [(0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)],
    }
    corners = shapes[colour % 4]
    return f'<polygon class="mark" points="{" ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in corners)}"/>'


def swatch(colour: int, level: bool = False) -> str:
    """The sample of a line for a legend."""
    dash = f' stroke-dasharray="{DASHES[colour % len(DASHES)]}"' if DASHES[colour % len(DASHES)] else ""
    mark = "" if level else marker(colour, 15, 7)
    return (
        f'<svg class="swatch s{colour}" viewBox="0 0 30 14" aria-hidden="true">'
        f'<line class="line" x1="0" x2="30" y1="7" y2="7"{dash}/>{mark}</svg>'
    )


def apart(places: list[float], least: float, bottom: float) -> list[float]:
    """Ascending places, moved so that neighbours are `least` apart and none lies below `bottom`."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + least) if moved else place)
    for n in range(len(moved) - 1, -1, -1):
        moved[n] = min(moved[n], bottom - least * (len(moved) - 1 - n))
    return moved


def heat_map(matrix_CC: list[list[float]], names: list[str], rows: str, columns: str) -> str:
    """Counts as an SVG; a cell's strength is its share of the row, hits on the diagonal are outlined."""
    cell = 24 if len(names) <= 30 else 9
    left = top = (max(len(n) for n in names) * 6.4 + 14) if cell > 9 else 24
    side = cell * len(names)
    drawn = []
    for i, counts in enumerate(matrix_CC):
        total = sum(counts) or 1
        for j, count in enumerate(counts):
            if count:
                told = f"{rows} {names[i]}, {columns} {names[j]}: {count:g} of {total:g}"
                strength = f'fill-opacity="{0.12 + 0.88 * count / total:.2f}"'
                drawn.append(square("heat", left + j * cell, top + i * cell, cell, strength, told))
        drawn.append(square("diagonal", left + i * cell, top + i * cell, cell))
        if cell > 9:
            at = (i + 0.5) * cell
            name, turned = escape(names[i]), f"translate({left + at + 4:.0f} {top - 7:.0f}) rotate(-90)"
            drawn.append(
                f'<text x="{left - 7:.0f}" y="{top + at + 4:.0f}" text-anchor="end">{name}</text>'
                f'<text transform="{turned}">{name}</text>'
            )
    wide = left + side + 8
    label = escape(f"{rows} (rows) by {columns} (columns)")
    fit = f"max-width:{wide:.0f}px;min-width:{min(wide, 560):.0f}px"
    bed = f'<rect class="bed" x="{left:.0f}" y="{top:.0f}" width="{side - 1}" height="{side - 1}"/>'
    return (
        f'<svg class="votes" style="{fit}" viewBox="0 0 {wide:.0f} {top + side + 4:.0f}" role="img" '
        f'aria-label="{label}">{bed}{"".join(drawn)}</svg>'
    )


def square(kind: str, x: float, y: float, cell: int, how: str = "", told: str = "") -> str:
    title = f"<title>{escape(told)}</title>" if told else ""
    return f'<rect class="{kind}" x="{x:.0f}" y="{y:.0f}" width="{cell - 1}" height="{cell - 1}" {how}>{title}</rect>'


def bars(counts: dict[str, int]) -> str:
    """A client's rows of each class, as a strip of bars."""
    most, step = max(counts.values(), default=0) or 1, 5
    drawn = "".join(
        f'<rect class="bar" x="{n * step}" y="{18 - 17 * count / most:.1f}" width="{step - 1}" '
        f'height="{17 * count / most:.1f}"><title>{escape(name)}: {count}</title></rect>'
        for n, (name, count) in enumerate(counts.items())
        if count
    )
    told = escape(", ".join(f"{name} {count}" for name, count in counts.items() if count))
    wide = step * len(counts)
    return (
        f'<svg class="bars" style="width:{wide}px" viewBox="0 0 {wide} 19" role="img" aria-label="{told}">{drawn}'
        f'<line class="rule" x1="0" x2="{wide}" y1="18.5" y2="18.5"/></svg>'
    )
