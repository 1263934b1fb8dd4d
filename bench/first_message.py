"""Seconds from the command to the first message that a client has handled, beside a quickstart of Flower's form.

    python bench/first_message.py                    # three pairs, one after the other; minutes
    python bench/first_message.py --pairs 1

*Ours* is `florilegium run method=fedavg data=fashion clients=ten`: it composes and checks the settings, starts a
SuperLink, and ends here when its server has counted the first reply. *Quickstart* is an app in the form of Flower's
PyTorch quickstart (a small CNN, FedAvg of flwr.serverapp.strategy, ten clients with images that are drawn and not
fetched), on a SuperLink that is started in the same way. It ends when a client has trained. The bar is 1.3.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from florilegium.runs.reader import read_lines
from florilegium.runtime.superlink import OwnSuperLink

ROOT = Path(__file__).resolve().parents[1]
LOOK_SECONDS, PATIENCE = 0.1, 300.0
OURS = ("method=fedavg", "data=fashion", "clients=ten", "references=none", "rounds=1")
PROJECT = """
    [project]
    name = "quickstart"
    version = "1.0.0"
    dependencies = ["flwr>=1.39"]
    [tool.flwr.app]
    publisher = "bench"
    [tool.flwr.app.components]
    serverapp = "quickstart.server_app:app"
    clientapp = "quickstart.client_app:app"
    [tool.flwr.app.config]
    done = ""
"""
TASK = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 10),
            )

        def forward(self, x):
            return self.layers(x)

    def train(net, epochs, rate):
        images, labels = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
        optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
        for _ in range(epochs):
            loss = nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()
"""
CLIENT = """
    from pathlib import Path
    import torch
    import torchvision  # the quickstart's data need it
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from quickstart.task import Net, train

    app = ClientApp()

    @app.train()
    def fit(message, context):
        net = Net()
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        loss = train(net, 1, 0.01)
        Path(context.run_config["done"]).touch()
        content = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"loss": loss, "num-examples": 64})}
        return Message(RecordDict(content), reply_to=message)
"""
SERVER = """
    from flwr.app import ArrayRecord
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from quickstart.task import Net

    app = ServerApp()

    @app.main()
    def main(grid, context):
        FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord(Net().state_dict()), num_rounds=1)
"""


def waited(ready: Callable[[], bool], alive: Callable[[], bool]) -> None:
    """Until something is so. SystemExit when the run ends before, or nothing happens."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if not alive() or time.monotonic() > deadline:
            raise SystemExit("bench/first_message.py: no message was handled")
        time.sleep(LOOK_SECONDS)


def ours(folder: Path) -> float:
    """Seconds until our server has the first reply."""
    out = folder / "run"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "florilegium.cli.main", "run", *OURS, f"out={out}"]
    begun = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        waited(
            lambda: any(line.get("done") for line in read_lines(out / "progress.jsonl")),
            lambda: process.poll() is None,
        )
        return time.monotonic() - begun
    finally:
        process.terminate()  # it ends all that it started
        process.wait()


def quickstart(folder: Path) -> float:
    """Seconds until a client of the quickstart has trained."""
    app, done = folder / "app", folder / "done"
    (app / "quickstart").mkdir(parents=True)
    (app / "pyproject.toml").write_text(textwrap.dedent(PROJECT))
    (app / "quickstart" / "__init__.py").touch()
    for name, text in (("task", TASK), ("client_app", CLIENT), ("server_app", SERVER)):
        (app / "quickstart" / f"{name}.py").write_text(textwrap.dedent(text))
    settings = folder / "run.toml"
    settings.write_text(f"done = {json.dumps(str(done))}\n")
    federation = "num-supernodes=10 client-resources-num-cpus=1 client-resources-num-gpus=0.0"
    begun = time.monotonic()
    with OwnSuperLink({}) as flower:
        run = flower.submit(app, settings, federation)
        looked = [time.monotonic()]

        def alive() -> bool:
            if time.monotonic() - looked[0] < 20:  # asking takes a second of its own
                return True
            looked[0] = time.monotonic()
            return not flower.status(run).finished

        waited(done.exists, alive)
        return time.monotonic() - begun


def measure(pairs: int) -> dict[str, float]:
    """Medians of both, taken in turn, and their ratio."""
    taken: dict[str, list[float]] = {"quickstart": [], "ours": []}
    for _ in range(pairs):
        for name, side in (("quickstart", quickstart), ("ours", ours)):
            with tempfile.TemporaryDirectory(prefix="florilegium-bench-") as folder:
                taken[name].append(side(Path(folder)))
    found = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return {"ratio": found["ours"] / found["quickstart"], **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    found = measure(parser.parse_args().pairs)
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
