"""Draws who holds how much of which class under each preset of conf/partition: one panel each, a bar for each client.

    python tools/partition_picture.py docs/pictures/partitions.png
    python tools/partition_picture.py picture.svg nid2 longtail -- data=emoji clients=image seed=1

Names of presets (default: all that the data allow), then after -- overrides of any settings. The file's ending says
what is drawn. A run's own partition: give its directory instead of presets.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np

from florilegium.config import composition
from florilegium.data.datasets import DataError
from florilegium.data.partition import partition
from florilegium.data.skew import effective_classes

COLUMNS, WIDE, HIGH = 4, 3.1, 2.5


def dealt(preset: str, overrides: list[str]) -> tuple[str, dict]:
    """(title, partition) of a preset, or of a run's directory."""
    if (recorded := Path(preset, "partition.json")).exists():
        return Path(preset).name, json.loads(recorded.read_text())
    given = [] if any(o.startswith("data=") for o in overrides) else ["data=fashion"]
    given += [] if any(o.startswith("clients=") for o in overrides) else ["clients=ten"]
    return preset, partition(composition.compose([*given, f"partition@clients.partition={preset}", *overrides]))


def panel(axes, title: str, found: dict) -> None:
    """Stacked bars: clients across, rows of each class in one colour."""
    import matplotlib

    clients = found["clients"]
    names = list(clients[0]["classes"])
    counts_KC = np.array([[client["classes"][name] for name in names] for client in clients])
    colours = matplotlib.colormaps["tab10"]
    if len(names) > colours.N:
        colours = matplotlib.colormaps["turbo"].resampled(len(names))
    below = np.zeros(len(clients))
    for c in range(len(names)):
        axes.bar(
            range(len(clients)),
            counts_KC[:, c],
            bottom=below,
            width=0.85,
            color=colours(c),
            label=names[c],
            linewidth=0.3,
            edgecolor="white",
        )
        below += counts_KC[:, c]
    axes.set_title(f"{title}: {effective_classes(counts_KC).mean():.1f} classes", fontsize=9)
    axes.set_xticks(range(len(clients)), [mark(client) for client in clients], fontsize=6)
    axes.tick_params(axis="y", labelsize=6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def mark(client: dict) -> str:
    """What stands under a client's bar: its number, and its domain where it has one."""
    told = client.get("domain") or (f"{client['shift']:.3g}" if "shift" in client else "")
    return f"{client['client']}\n{told}" if told else str(client["client"])


def main() -> None:
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    (target, *presets), overrides = given[:cut], given[cut + 1 :]
    presets = presets or sorted(path.stem for path in (composition.CONF / "partition").glob("*.yaml"))
    warnings.simplefilter("ignore")  # a class that nobody has is seen in the picture
    found = []
    for preset in presets:
        try:
            found.append(dealt(preset, overrides))
        except DataError as error:
            print(f"{preset} is left out: {error}", file=sys.stderr)

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = -(-len(found) // COLUMNS)
    figure, axes = pyplot.subplots(
        lines,
        min(COLUMNS, len(found)),
        squeeze=False,
        layout="constrained",
        figsize=(WIDE * min(COLUMNS, len(found)), HIGH * lines + 0.5),
    )
    for place in axes.flat[len(found) :]:
        place.axis("off")
    for place, (title, one) in zip(axes.flat, found, strict=False):
        panel(place, title, one)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 10), fontsize=7, frameon=False)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    main()
