"""report.html: one self-contained page for one run, finished or not. Tables over many runs: comparison.py.

Never imports torch: a page is made in a second, anywhere the run directory can be read.
"""

from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

import yaml

from florilegium.catalogue import Role
from florilegium.report.charts import bars
from florilegium.report.comparison import compare
from florilegium.report.lead import images_judged, lead, share_error
from florilegium.report.markup import (
    card,
    difference,
    document,
    duration,
    percent,
    plain_number,
    section,
    size,
    table,
)
from florilegium.report.panels import Grid, arm_colours, arm_name, curves, drawn_plates, stages, vote_map
from florilegium.runs.reader import MAIN, Recorded, mean, recorded, replace

__all__ = ["compare", "page", "write"]


def write(out) -> Path:
    """Write `out`/report.html from what the run directory holds. RunError if it is no run directory."""
    path = Path(out) / "report.html"
    replace(path, page(out).encode())
    return path


def page(out) -> str:
    """The page as text."""
    run = recorded(out)
    colour, pictures = arm_colours(run), stages(run)
    body = "".join(
        [
            section(
                "Results",
                "After the last evaluated round; in small, the round chosen on the clients’ validation "
                "data. A dash: the arm has no such figure.",
                results(run, colour),
            ),
            section(
                "Round by round",
                "Accuracies in per cent. A line without markers is a single figure, drawn as a level.",
                curves(run, colour),
            ),
            section(
                "The generator, before and after",
                "Same prompts, same noise seeds: whatever differs was learned.",
                drawn_plates(pictures),
            ),
            section(
                "How the clients voted",
                "Each row is a drawn class, each column the consensus label its samples "
                "got. Stronger colour is a larger share of the row; on the outlined cells vote and prompt agree.",
                vote_map(run),
            ),
            section(
                "What crossed the wire",
                "Measured bytes of the messages of the method’s own arm, as Flower sends "
                "them. 1 MB is 2<sup>20</sup> bytes, as in the paper.",
                traffic(run),
            ),
            section(
                "The clients", "Test accuracy of every client’s own model after the last evaluated round.", clients(run)
            ),
            section("Faults", "Answers that were refused or never came; the round went on without them.", faults(run)),
            section("Read with care", "What these figures can and cannot say.", notes(run)),
            section("Settings", "Fully resolved; this text repeats the run.", settings(run)),
        ]
    )
    foot = f"{escape(run.path.name)} · {duration(run.seconds)} · drawn by florilegium from the run directory alone"
    return document(f"{run.label} on {run.get('data.name', 'data')}", header(run, pictures), body, foot)


def header(run: Recorded, pictures: list[Grid]) -> str:
    """Title, protocol, the result in one sentence and one picture, headline figures."""
    main, alone = run.metrics(MAIN), first_of(run, Role.ALONE)
    facts = [
        ("data", run.get("data.name")),
        ("clients", cohort(run)),
        ("rounds", run.get("rounds")),
        ("partition", partition_text(run)),
        ("seed", run.get("seed")),
        ("time", duration(run.seconds)),
    ]
    told = "".join(f"<li>{name} <b>{escape(str(fact))}</b></li>" for name, fact in facts if fact not in (None, ""))
    stopped = (
        f'<p class="banner"><b>This run is not finished.</b> It stands '
        f"{escape(run.standing)}; the figures are those of its last evaluated round.</p>"
        if run.unfinished
        else ""
    )
    cards = [
        card(f"Clients’ {kind} accuracy", headline(main[key]), gain(Role.ALONE.capitalize(), main, alone, key))
        for kind in ("image", "text")
        if (key := f"client/accuracy/{kind}") in main
    ]
    cards += generator_cards(run, main) + byte_card(main)
    title = f"<h1>{escape(run.label)}</h1><ul class=facts>{told}</ul>"
    return f"{title}{stopped}{lead(run, pictures)}<div class=cards>{''.join(cards)}</div>"


def headline(value: float) -> str:
    return f"{100 * value:.1f}<small>%</small>"


def gain(name: str, main: dict, other: dict, key: str) -> list[tuple[str, str]]:
    """One line of a card: another arm's figure and how far the main arm is from it."""
    if key not in main or key not in other:
        return []
    return [(name, f"{100 * other[key]:.1f} {difference(main[key], other[key])}")]


def generator_cards(run: Recorded, main: dict) -> list[str]:
    """T2I accuracy and CLIP score beside the un-tuned model and the reference arms that tune one."""
    key, clip = "t2i/accuracy", "t2i/clip_score"
    own = [arm for arm in run.with_role(Role.SELF_TUNED) if key in run.metrics(arm)]
    best = max(own, key=lambda r: run.metrics(r)[key], default="")
    others = [
        ("Un-tuned", run.untuned()),
        (Role.SELF_TUNED.capitalize(), run.metrics(best)),
        (Role.BOUND.capitalize(), first_of(run, Role.BOUND)),
    ]
    cards = []
    if key in main:
        judge = run.protocol.get("judge_accuracy")
        real = [("Judge, on real", f"{100 * judge:.1f}")] if isinstance(judge, int | float) else []
        cards.append(
            card(
                "T2I accuracy",
                headline(main[key]),
                [line for name, other in others for line in gain(name, main, other, key)] + real,
            )
        )
    if clip in main:
        cards.append(
            card(
                "CLIP score",
                plain_number(main[clip]),
                [(name, plain_number(other[clip])) for name, other in others if clip in other],
            )
        )
    return cards


def byte_card(main: dict) -> list[str]:
    """Bytes of one client in one round: measured, and by the paper's formula."""
    ways = [
        (arrow, main.get(f"bytes/{way}_per_client"), main.get(f"bytes/formula_{way}"))
        for arrow, way in (("↑", "up"), ("↓", "down"))
    ]
    if all(measured is None for _, measured, _ in ways):
        return []
    facts = [(f"{arrow} by formula", size(formula)) for arrow, _, formula in ways if formula is not None]
    value = " ".join(f"<span>{arrow} {size(measured)}</span>" for arrow, measured, _ in ways)
    return [card("Bytes per client, round", value, facts, "wide")]


def first_of(run: Recorded, role: Role) -> dict[str, float]:
    """The metrics of the first arm that stands for this; of none, {}."""
    arms = run.with_role(role)
    return run.metrics(arms[0]) if arms else {}


def cohort(run: Recorded) -> str:
    """`2 image (resnet, vit) + 2 text (bert, distilbert)`."""
    mix = [c for c in run.get("clients.mix") or [] if isinstance(c, dict)]
    parts = []
    for modality in dict.fromkeys(c.get("modality") for c in mix):
        models = [str(c.get("model")) for c in mix if c.get("modality") == modality]
        parts.append(f"{len(models)} {modality} ({', '.join(dict.fromkeys(models))})")
    return " + ".join(parts)


def partition_text(run: Recorded) -> str:
    """The partition's name with the settings that make it harder."""
    held = run.partition.get("clients") or []
    if held and all(client.get("data") == "own data" for client in held):
        return "own data of each site"
    s = run.get("clients.partition") or {}
    if not (name := s.get("name")):
        return ""
    told = [f"{name} α = {s['alpha']}" if name.startswith("dirichlet") and s.get("alpha") is not None else str(name)]
    if s.get("imbalance", 1) != 1:
        told.append(f"long tail {s['imbalance']}")
    if s.get("shift", "none") != "none":
        told.append(str(s["shift"]))
    return ", ".join(told)


FIGURES = (
    ("Image accuracy", "client/accuracy/image", percent),
    ("Text accuracy", "client/accuracy/text", percent),
    ("Image accuracy, own classes", "client/accuracy_own/image", percent),
    ("Text accuracy, own classes", "client/accuracy_own/text", percent),
    ("Segmentation, mIoU", "client/miou/image", percent),
    ("Retrieval, R@1 both ways summed", "client/rsum/pair", percent),
    ("Server’s", "server/rsum", percent),
    ("T2I accuracy", "t2i/accuracy", percent),
    ("CLIP score", "t2i/clip_score", plain_number),
    ("Diversity, pictures of one prompt", "t2i/diversity", plain_number),
    ("Up per client", "bytes/up_per_client", size),
    ("Down per client", "bytes/down_per_client", size),
)


def results(run: Recorded, colour: dict[str, int]) -> str:
    """One line per arm of the run, and the un-tuned generator."""
    lines = [(arm, run.metrics(arm), run.metrics(arm, "best_on_validation")) for arm in run.arms]
    if run.untuned():
        lines.append(("untuned", run.untuned(), {}))
    shown = [f for f in FIGURES if any(f[1] in now for _, now, _ in lines)]
    if not shown:
        return ""

    def cell(now: dict, best: dict, key: str, form) -> str:
        chosen = key in now and key in best and not key.startswith("bytes/") and best[key] != now[key]
        return form(now.get(key)) + (f"<small>val. {form(best[key])}</small>" if chosen else "")

    rows = [
        [arm_name(run, arm, colour), *(cell(now, best, key, form) for _, key, form in shown)]
        for arm, now, best in lines
    ]
    own = [n for n, (arm, *_) in enumerate(lines) if arm == MAIN]
    return table(["Arm", *(name for name, _, _ in shown)], rows, main=own)


def traffic(run: Recorded) -> str:
    """Phase by phase and modality by modality: messages, mean size both ways, totals."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for entry in run.ledger:
        if entry.get("arm") == MAIN:
            groups.setdefault((str(entry.get("phase")), str(entry.get("modality"))), []).append(entry)
    rows = []
    for (phase, modality), held in groups.items():
        down, up = ([e.get(way) or 0 for e in held] for way in ("down", "up"))
        rows.append(
            [
                escape(phase),
                escape(modality),
                str(len(held)),
                size(mean(down)),
                size(mean(up)),
                size(sum(down)),
                size(sum(up)),
            ]
        )
    if not rows:
        return ""
    whole = [e for held in groups.values() for e in held]
    totals = [size(sum(e.get(way) or 0 for e in whole)) for way in ("down", "up")]
    rows.append(["all", "", str(len(whole)), "", "", *totals])
    head = ["Phase", "Modality", "Messages", "Down, each", "Up, each", "Down, total", "Up, total"]
    return table(head, rows, main=[len(rows) - 1], words=[1])


def clients(run: Recorded) -> str:
    """One line per client: what it is, what it holds, its accuracy (or mIoU, or sum of R@1) in every arm."""
    told = {
        arm: {
            k.rsplit("/", 1)[1]: v
            for k, v in run.metrics(arm).items()
            if k.startswith(("client/accuracy/", "client/miou/", "client/rsum/"))
        }
        for arm in run.arms
    }
    holds = {str(c.get("client", n)): c for n, c in enumerate(run.partition.get("clients") or [])}
    known = {i for figures in told.values() for i in figures if i not in ("image", "text", "pair")}
    shown = [arm for arm in run.arms if known & told[arm].keys()]
    rows = [
        [
            f"client {escape(i)}",
            escape(str(holds.get(i, {}).get("modality", "–"))),
            escape(str(holds.get(i, {}).get("model", "–"))) + domain(holds.get(i, {})),
            *holding(holds.get(i, {})),
            *(percent(told[arm].get(i)) for arm in shown),
        ]
        for i in sorted(known, key=lambda i: (len(i), i))
    ]
    head = ["Client", "Modality", "Model", "Samples", "Classes", *(run.title(arm) for arm in shown)]
    return table(head, rows, words=[1, 2]) if rows else ""


def domain(client: dict) -> str:
    """The domain a client draws in, or the amount by which its pictures are shifted, where it has one."""
    told = client.get("domain") or (f"shift {client['shift']:.3g}" if "shift" in client else "")
    return f"<small>{escape(told)}</small>" if told else ""


def holding(client: dict) -> tuple[str, str]:
    """How many training rows a client holds, and of which classes."""
    if client.get("data") == "own data":
        many = str(client["count"]) if "count" in client else "–"
        return f"{many}<small>own data</small>", str(len(client["present"])) if "present" in client else "–"
    counts = client.get("classes") or {}
    rows = str(len(client["rows"])) if "rows" in client else "–"
    return rows, f"{sum(n > 0 for n in counts.values())} of {len(counts)}{bars(counts)}" if counts else "–"


def faults(run: Recorded) -> str:
    """Each fault of the ledger by arm, client and phase, with its count and the rounds."""
    found: list[Any] = [e for e in run.ledger if e.get("fault")]
    found = [e | {"client": f"node {e['node']}"} if "node" in e else e for e in found]
    counts = Counter((e.get("arm"), e.get("client"), e.get("phase"), e["fault"]) for e in found)
    if not counts:
        return "<p>None: every message was answered, and every answer kept the contract.</p>" if run.ledger else ""
    rounds = {
        key: sorted(
            {e.get("round") for e in found if (e.get("arm"), e.get("client"), e.get("phase"), e["fault"]) == key}
        )
        for key in counts
    }
    rows = [
        [
            escape(client if str(client).startswith("node") else f"client {client}"),
            escape(run.title(str(arm))),
            escape(str(phase)),
            str(n),
            ", ".join(map(str, rounds[arm, client, phase, fault])),
            escape(fault),
        ]
        for (arm, client, phase, fault), n in counts.most_common()
    ]
    return table(["Client", "Arm", "Phase", "Times", "Rounds", "Reason"], rows, words=[1, 2, 5])


def notes(run: Recorded) -> str:
    """The limits of these figures, as far as the run itself tells them."""
    told, main = [], run.metrics(MAIN)
    judge, accuracy = run.protocol.get("judge_accuracy"), main.get("t2i/accuracy")
    if accuracy is not None and isinstance(judge, int | float):
        told.append(
            f"T2I accuracy is what a judge, a classifier trained on real images of the clients’ domain, "
            f"recognises. On real held-out images the same judge is right in <b>{percent(judge)}</b> of all "
            f"cases; the generator’s {percent(accuracy)} should be read against that."
        )
    elif accuracy is not None:
        told.append("T2I accuracy is what a trained judge recognises; its own accuracy on real images is not recorded.")
    count = images_judged(run)
    if accuracy is not None and count:
        told.append(
            f"It is measured on {count} generated images: one standard error is about "
            f"{100 * share_error(accuracy, count):.1f} points."
        )
    for figure, why in (run.protocol.get("not_measured") or {}).items():
        told.append(f"{escape(str(figure))} was not measured: {escape(str(why))}.")
    told.append(
        f"This is one run with one seed ({run.get('seed')}), and one seed decides nothing. Run several seeds: "
        "<code>florilegium run -m seed=0,1,2</code>. Then <code>florilegium compare</code> says which differences are "
        "decided."
    )
    if not run.with_role(Role.ALONE):
        told.append("This run has no arm whose clients learn alone, so the clients’ gain is not shown.")
    if run.unfinished:
        told.append("The run is unfinished; later rounds and reference arms are missing.")
    return f'<ul class="notes">{"".join(f"<li>{t}</li>" for t in told)}</ul>'


def settings(run: Recorded) -> str:
    text = yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True, width=100)
    return f"<details><summary>settings.yaml</summary><pre>{escape(text)}</pre></details>"
