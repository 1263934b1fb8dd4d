"""The first screen of the report page: the result of the run in one sentence and one picture."""

import math
import statistics
from html import escape

import numpy as np

from florilegium.catalogue import Role
from florilegium.report.panels import Grid
from florilegium.runs.pictures import data_uri, strip
from florilegium.runs.reader import MAIN, Recorded

MOST = 12  # classes in the picture: one line of tiles that a phone still shows


def lead(run: Recorded, pictures: list[Grid]) -> str:
    """Sentence and picture as HTML; nothing of what the run did not measure."""
    told = " ".join(text for text in (generator_sentence(run), diversity_sentence(run), clients_sentence(run)) if text)
    return (f'<p class="lead">{told}</p>' if told else "") + before_and_after(pictures)


def generator_sentence(run: Recorded) -> str:
    """How often the judge finds the prompt's class in the generator's pictures, after and before the run."""
    key = "t2i/accuracy"
    after, before = run.metrics(MAIN).get(key), run.untuned().get(key)
    if after is None or before is None:
        return ""
    count = images_judged(run)
    error = math.hypot(share_error(after, count), share_error(before, count)) if count else None
    verdict = "" if error is None else beyond_error(after - before, error)
    return (
        f"In the clients’ domain the judge recognises <b>{100 * after:.1f}&nbsp;%</b> of the generator’s pictures; "
        f"before, it was {100 * before:.1f}&nbsp;%{verdict}."
    )


def diversity_sentence(run: Recorded) -> str:
    """What a better accuracy may have cost: how unlike each other the pictures of one prompt are, before and after."""
    key = "t2i/diversity"
    after, before = run.metrics(MAIN).get(key), run.untuned().get(key)
    if after is None or before is None:
        return ""
    told = f"a mean CLIP distance of {after:.2f} from each other; before, it was {before:.2f}"
    return f"The pictures of one prompt have {told}."


def beyond_error(gain: float, error: float) -> str:
    """The difference in points, and whether it is larger than two standard errors of two independent samples."""
    points = f"{100 * gain:+.1f}".replace("-", "−")
    side = "more" if abs(gain) > 2 * error else "less"
    return f" ({points} points, {side} than two standard errors of {100 * error:.1f})"


def clients_sentence(run: Recorded) -> str:
    """How far the clients of each modality are from the clients that learn alone."""
    arms = run.with_role(Role.ALONE)
    if not arms:
        return ""
    main, alone = run.metrics(MAIN), run.metrics(arms[0])
    parts = [
        f"{kind} clients {points(main[key] - alone[key])}{spread(run, kind, main, alone)}"
        for kind in ("image", "text")
        if (key := f"client/accuracy/{kind}") in main and key in alone
    ]
    if not parts:
        return ""
    return f"Beside clients that learn alone, {' and '.join(parts)}."


def spread(run: Recorded, kind: str, main: dict[str, float], alone: dict[str, float]) -> str:
    """How far the gains of this kind's clients differ: the standard error of their mean. "" for fewer than two."""
    dealt = [row for row in run.partition.get("clients") or [] if row.get("modality") == kind]
    keys = [f"client/accuracy/{row['client']}" for row in dealt]
    gains = [main[key] - alone[key] for key in keys if key in main and key in alone]
    if len(gains) < 2:
        return ""
    error = statistics.stdev(gains) / math.sqrt(len(gains))
    return f" (standard error over {len(gains)} clients: {100 * error:.1f})"


def points(difference: float) -> str:
    """`gain 3.6 points`, `lose 0.4 points` or `are equal`."""
    size = f"{100 * abs(difference):.1f}"
    return "are equal" if size == "0.0" else f"{'gain' if difference > 0 else 'lose'} {size} points"


def before_and_after(pictures: list[Grid]) -> str:
    """The first picture of each class before the run and after it: same prompt, same noise, no selection."""
    own = [stage for stage in pictures if stage[0] not in set(map(str, Role))]
    if len(own) < 2:
        return ""
    lines, shown = [], list(dict.fromkeys(own[0][2]))[:MOST]
    for name, images_N3HW, captions in (own[0], own[-1]):
        places = [captions.index(caption) for caption in shown if caption in captions]
        uri = data_uri(strip(np.stack([images_N3HW[at] for at in places])))
        text = f"{name}: {', '.join(captions[at] for at in places)}"
        lines.append(f'<span>{escape(name)}</span><img src="{uri}" alt="{escape(text)}">')
    names = ", ".join(escape(caption) for caption in shown)
    return (
        f'<figure class="lead"><div>{"".join(lines)}</div><figcaption>The first picture of each prompt, with the same '
        f"noise: {names}.</figcaption></figure>"
    )


def share_error(share: float, count: int) -> float:
    """The standard error of a share of `count` independent trials."""
    return math.sqrt(share * (1 - share) / count)


def images_judged(run: Recorded) -> int:
    """How many generated images stand behind T2I accuracy; 0 if the run does not say."""
    classes = run.protocol.get("classes")
    classes = len(classes) if isinstance(classes, list) else classes
    count = run.protocol.get("images") or (run.get("evaluation.images_per_class") or 0) * (classes or 0)
    return count if isinstance(count, int) else 0
