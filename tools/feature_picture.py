"""Draws what clients' last local models make of the same held-out images, in the plane: by class and by client.

    python tools/feature_picture.py docs/pictures/features.png runs/fedavg runs/feddifrc
    python tools/feature_picture.py picture.svg runs/feddifrc --start --pca --each 10

One line of panels for each finished run (a simulation: the clients' memory is in its directory), with --start one
before them for the models that nobody has trained. t-SNE, or principal components with --pca.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from client_app.client import Client
from client_app.memory import Memory
from florilegium.config.composition import MAIN, read_yaml
from florilegium.config.settings import Settings
from florilegium.data.private import open_private

LATEST = 10**9  # a round after all of the run's: memory gives the last version


def plane(pca: bool, points: int) -> PCA | TSNE:
    """The projection to two dimensions; the same every time."""
    return PCA(2) if pca else TSNE(2, init="pca", perplexity=min(30, points / 3), random_state=0)


def settings_of(run: Path) -> Settings:
    conf = read_yaml(run / "settings.yaml")
    conf.clients.device = "cpu"
    return conf


def features(conf: Settings, run: Path | None, each: int) -> tuple[Tensor, Tensor, Tensor]:
    """(z [N, D], class [N], client [N]) of the image clients; `run` None is the start of all, client 0's fresh model.

    Clients see the first `each` held-out images of every class in their own domain.
    """
    found, labels, clients = [], [], []
    start: dict[str, Tensor] | None = None
    for k, member in enumerate(conf.clients.mix):
        if member.modality != "image":
            continue
        folder = Path(run or "nowhere", "state", Path(conf.out).name, MAIN, f"client-{k}")
        client = Client(conf, k, open_private(conf, k, "image", {}), Memory(folder, LATEST, 0), LATEST)
        if run is not None and not client.trained:
            continue  # was in no cohort
        if run is None:
            start = client.model.state_dict() if start is None else start
            client.load(start)
        rows = client.data.test
        chosen = torch.cat([torch.nonzero(rows.labels == c).flatten()[:each] for c in range(client.classes)])
        found.append(client.encoded(client.rows_as_inputs(rows, chosen)))
        labels.append(rows.labels[chosen])
        clients.append(torch.full_like(chosen, k))
    if not found:
        raise SystemExit(f"{run} has no trained image client")
    return torch.cat(found), torch.cat(labels), torch.cat(clients)


def panel(axes, points_N2: Tensor, group_N: Tensor, names: list[str], title: str, legend: bool) -> None:
    import matplotlib

    colours = matplotlib.colormaps["tab10"]
    if len(names) > colours.N:
        colours = matplotlib.colormaps["turbo"].resampled(len(names))
    for g, name in enumerate(names):
        if len(mine := points_N2[group_N == g]):
            axes.scatter(mine[:, 0], mine[:, 1], s=3, color=colours(g), linewidths=0, label=name)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    if legend:
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.02),
            ncols=5,
            fontsize=6,
            frameon=False,
            markerscale=2,
            columnspacing=0.8,
            handletextpad=0.1,
        )


def draw(target: Path, lines: list[tuple[str, Settings, Path | None]], each: int, pca: bool) -> None:
    """One line of two panels for each (title, settings, run)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from florilegium.data.datasets import open_dataset

    figure, axes = pyplot.subplots(
        len(lines), 2, squeeze=False, figsize=(7, 3.4 * len(lines) + 0.4), layout="constrained"
    )
    for n, (title, conf, run) in enumerate(lines):
        z_ND, label_N, client_N = features(conf, run, each)
        points_N2 = torch.from_numpy(plane(pca, len(z_ND)).fit_transform(z_ND.numpy()))
        classes, last = [str(name) for name in open_dataset(conf.data).classes], n == len(lines) - 1
        clients = [f"client {k}" for k in range(len(conf.clients.mix))]
        panel(axes[n, 0], points_N2, label_N, classes, f"{title}: by class", last)
        panel(axes[n, 1], points_N2, client_N, clients, f"{title}: by client", last)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("target", type=Path)
    reader.add_argument("runs", type=Path, nargs="+")
    reader.add_argument("--start", action="store_true", help="also the models as the seed starts them")
    reader.add_argument("--pca", action="store_true", help="principal components instead of t-SNE")
    reader.add_argument("--each", type=int, default=20, help="images of each class that every client encodes")
    given = reader.parse_args()
    lines = [(str(conf.label or conf.method.name), conf, run) for run in given.runs for conf in [settings_of(run)]]
    start = [("start", lines[0][1], None)] if given.start else []
    draw(given.target, start + lines, given.each, given.pca)


if __name__ == "__main__":
    main()
