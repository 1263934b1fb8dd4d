"""The drawn parts of the report page: curves over rounds, pictures before and after, the map of votes."""

import re
from html import escape
from pathlib import Path

import numpy as np

from florilegium.catalogue import Role
from florilegium.report.charts import ROUND, Axis, Series, heat_map, line_chart, swatch
from florilegium.report.markup import legend
from florilegium.runs.pictures import by_caption, data_uri, read_raw, strip
from florilegium.runs.reader import MAIN, Recorded, finite

FIXED = {Role.ALONE: 1, Role.SELF_TUNED: 2, Role.BOUND: 3}  # colours; the main arm has 0
UNTUNED = 4
PICTURED = (Role.SELF_TUNED, Role.BOUND)  # roles whose images are shown beside the method's
LONG, BREAK = 10, 7  # a strip's name of more letters may be broken after so many
PALETTE = 8
Grid = tuple[str, np.ndarray, list[str]]  # name, images [N,3,H,W], captions
TILES, PLATES = 4, 48  # images a strip, classes a page
CURVES = (
    ("Image clients, test accuracy", "client/accuracy/image", True),
    ("Text clients, test accuracy", "client/accuracy/text", True),
    ("Image clients, mIoU of segmentation", "client/miou/image", True),
    ("Retrieval clients, R@1 both ways summed", "client/rsum/pair", True),
    ("Server’s retrieval, R@1 both ways summed", "server/rsum", True),
    ("T2I accuracy, clients’ domain", "t2i/accuracy", True),
    ("CLIP score", "t2i/clip_score", False),
    ("Diversity: mean CLIP distance of a prompt’s pictures", "t2i/diversity", False),
)
LABELS = (
    ("kept by the vote", "labels/kept", 0),
    ("consensus label right, by the judge", "labels/accuracy", 2),
    ("consensus label is the prompt’s", "labels/agree_with_prompt", 3),
    ("prompt right, by the judge", "prompts/accuracy", 1),
)


def arm_colours(run: Recorded) -> dict[str, int]:
    """One colour per arm for the whole page; the first arm of each role has the same one on every page."""
    given = {MAIN: 0, "untuned": UNTUNED} | {arms[0]: n for role, n in FIXED.items() if (arms := run.with_role(role))}
    free = [n for n in range(PALETTE) if n not in given.values()]
    for arm in run.arms:
        if arm not in given:
            given[arm] = free.pop(0) if free else len(given) % PALETTE
    return given


def arm_name(run: Recorded, arm: str, colour: dict[str, int]) -> str:
    """An arm's name with the sample of its line."""
    return f"{swatch(colour[arm])}{escape(run.title(arm))}"


def series(run: Recorded, arm: str, key: str, name: str, colour: int) -> list[Series]:
    points = [(r["round"], m[key]) for r in run.of(arm) if key in (m := finite(r["metrics"]))]
    return [Series(name, colour, points)] if points else []


def curves(run: Recorded, colour: dict[str, int]) -> str:
    """A chart for each figure that the run has, every arm in its colour; and one for the labels."""
    drawn = []
    for title, key, percent in CURVES:
        lines = [s for arm in run.arms for s in series(run, arm, key, run.title(arm), colour[arm])]
        if key in run.untuned() and len(lines[0].points) > 1:
            lines.append(Series(run.title("untuned"), colour["untuned"], [(0, run.untuned()[key])]))
        drawn.append(chart(title, lines, percent))
    labels = [s for name, key, c in LABELS for s in series(run, MAIN, key, name, c)]
    drawn.append(chart("Synthetic samples and their labels", labels, True))
    drawn.append(chart("Clients that vote with the consensus", agreement(run), True))
    return f'<div class="plots">{"".join(drawn)}</div>' if any(drawn) else ""


def agreement(run: Recorded) -> list[Series]:
    """How often each client's vote was the consensus label."""
    found = [re.fullmatch(r"labels/client_(\d+)_agrees", key) for key in run.metrics(MAIN)]
    return [s for m in found if m for s in series(run, MAIN, m[0], f"client {m[1]}", int(m[1]) % PALETTE)]


def chart(title: str, lines: list[Series], percent: bool, axis: Axis = ROUND) -> str:
    if not lines:
        return ""
    unit = " (%)" if percent else ""
    named = legend([(s.name, s.colour, len(s.points) == 1) for s in lines])
    return f"<figure><h3>{escape(title)}{unit}</h3>{named}{line_chart(title, lines, percent, axis)}</figure>"


def grids(run: Recorded, arm: str) -> list[tuple[int, Path]]:
    """(round, file) of an arm's kept grids, by round."""
    kept = re.compile(rf"{re.escape(arm)}-round-(\d+)\.npz")
    found = [(kept.fullmatch(p.name), p) for p in (run.path / "samples").glob("*.npz")]
    return sorted((int(m[1]), p) for m, p in found if m)


def stages(run: Recorded) -> list[Grid]:
    """(name, images, captions): the method before and after, then the last grid of the first arm of each role that
    has one."""
    chosen, main = [], grids(run, MAIN)
    if main:
        chosen.append(("before" if main[0][0] == 0 else f"round {main[0][0]}", main[0][1]))
    if len(main) > 1:
        chosen.append((f"round {main[-1][0]}", main[-1][1]))
    for role in PICTURED:
        chosen += [(str(role), grids(run, arm)[-1][1]) for arm in run.with_role(role) if grids(run, arm)][:1]
    return opened(chosen)


def opened(chosen: list[tuple[str, Path]]) -> list[Grid]:
    """(name, images, captions) of each grid that can be read."""
    read = []
    for name, path in chosen:
        try:
            read.append((name, *read_raw(path)))
        except (OSError, ValueError, KeyError):
            continue  # a foreign file is no reason to have no page
    return read


def breakable(name: str) -> str:
    """A strip's name as HTML, with a soft hyphen where it is long."""
    return f"{escape(name[:BREAK])}&shy;{escape(name[BREAK:])}" if len(name) > LONG else escape(name)


def drawn_plates(shown: list[Grid]) -> str:
    """One plate for each caption: a strip of the first images of each (name, images, captions)."""
    held = [(name, images, by_caption(captions)) for name, images, captions in shown]
    captions = list(dict.fromkeys(c for _, _, places in held for c in places))[:PLATES]
    drawn = []
    for caption in captions:
        lines = "".join(
            f'<div class="strip"><span>{breakable(name)}</span><img '
            f'src="{data_uri(strip(images[places[caption][:TILES]]))}" alt="{escape(caption)}, {escape(name)}"></div>'
            for name, images, places in held
            if caption in places
        )
        drawn.append(f'<figure class="plate"><h3>{escape(caption)}</h3>{lines}</figure>')
    tiles = max((len(places[c][:TILES]) for _, _, places in held for c in places), default=0)
    return f'<div class="plates" style="--plate:{124 + 34 * tiles}px">{"".join(drawn)}</div>' if drawn else ""


def vote_map(run: Recorded) -> str:
    """The last recorded vote of the main arm."""
    votes = run.votes.get(MAIN) or {}
    if not votes.get("rounds"):
        return ""
    final = max(votes["rounds"], key=int)
    matrix, names = votes["rounds"][final], [str(c) for c in votes.get("classes") or []]
    total = sum(map(sum, matrix))
    hits = sum(matrix[n][n] for n in range(len(matrix)))
    if not total or len(names) != len(matrix):
        return ""
    return (
        f"<p>Round {final}: {hits:g} of {total:g} samples ({100 * hits / total:.1f} %) got the label they were "
        f'drawn for.</p><div class="scroll plain">{heat_map(matrix, names, "drawn", "consensus")}</div>'
    )
