"""Seconds and accuracy of FedProto: ours beside HtFLlib (TsingZ0/HtFLlib, Apache-2.0), of which you have a clone.

    python bench/peers/htfl.py --clone ~/HtFLlib      # 10 clients, 16 rounds; the variable HTFLLIB names it too
    python bench/peers/htfl.py --clone ~/HtFLlib --rounds 2 --clients 3

From the start of a process to its end: imports, data, rounds, one evaluation. Both have the same rows, start, model,
batches' size and SGD without momentum. Nothing of the clone is copied or changed: its FedProto runs in a process of
its own (`--child`), in a folder of its own. Both are judged by the nearest global prototype on the whole test set. The
bar of the ratio of seconds is 0.5.

Differences that were read in its code (commit e959261): it does not shuffle, leaves out a last small batch, and its
prototypes are means over the training, of all epochs; ours are taken after it.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import ROOT
from methods import Shared
from torch import nn
from whole import ours

from client_app.client import Client
from client_app.opening import open_client
from florilegium.config import composition
from florilegium.protocol.codec import Header
from florilegium.runs.reader import read_lines

DATA = "ours"  # the clone's name of our rows


def overrides(shared: Shared, out: str) -> list[str]:
    """Our side's, with what FedProto's settings call otherwise."""
    return [
        *shared.ours("fedproto", 0, out),
        f"method.client.pretrain_epochs={shared.epochs}",
        "method.client.optimizer=sgd",
        "method.client.clip=null",
        "method.client.predict=nearest",
    ]


class Base(nn.Module):
    """Our model in the form of which the clone takes the head off: `fc` is the classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.fc = model, model.classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.model.encode(x))


def rows_of(client: Client, rows: Any, file: Path) -> None:
    """Write rows where the clone reads them, as our clients see them without augmentation."""
    file.parent.mkdir(parents=True, exist_ok=True)
    x = client.rows_as_inputs(rows, torch.arange(len(rows))).numpy()
    np.savez(file, data=np.array({"x": x, "y": rows.labels.numpy()}, dtype=object))


def settings_of(facts: dict[str, Any], classes: int, width: int) -> argparse.Namespace:
    """The clone's arguments. Its evaluation, which goes over single rows, is asked only before the first round."""
    none = {"client_drop_rate": 0.0, "train_slow_rate": 0.0, "send_slow_rate": 0.0, "random_join_ratio": False}
    none |= {"time_select": False, "time_threthold": 1e9, "auto_break": False, "few_shot": 0, "models_folder_name": ""}
    return argparse.Namespace(
        algorithm="FedProto",
        dataset=DATA,
        device="cpu",
        num_classes=classes,
        batch_size=facts["batch"],
        local_learning_rate=facts["rate"],
        local_epochs=facts["epochs"],
        global_rounds=facts["rounds"],
        num_clients=facts["clients"],
        join_ratio=1.0,
        eval_gap=10**9,
        top_cnt=100,
        goal="bench",
        save_folder_name="temp",
        feature_dim=width,
        lamda=1.0,
        models=["ours()"],
        **none,
    )


def child(given: Path) -> None:
    """The clone's FedProto on our rows; prints its accuracy. The working folder is its `system`."""
    facts = json.loads(given.read_text())
    torch.set_num_threads(1)
    conf = composition.load({"settings": json.dumps(facts["settings"]), "overrides": ""})
    where = {"state-dir": str(given.parent / "state")}
    clients = [open_client(conf, {"partition-id": k, **where}, Header("method", 0, 0)) for k in range(facts["clients"])]
    for k, client in enumerate(clients):
        rows_of(client, client.data.train, Path("..", "dataset", DATA, "train", f"{k}.npz"))
        rows_of(client, client.data.test, Path("..", "dataset", DATA, "test", f"{k}.npz"))
    sys.path.insert(0, str(Path(facts["clone"], "system")))
    sys.modules.setdefault("h5py", types.ModuleType("h5py"))  # it only writes the results that we do not ask for
    from flcore.clients.clientbase import load_item, save_item
    from flcore.servers.serverproto import FedProto
    from flcore.trainmodel import models

    models.ours = lambda: Base(clients[0].model)
    server = FedProto(settings_of(facts, clients[0].classes, clients[0].width), 0)
    server.save_results = lambda: None
    for one in server.clients:
        model = load_item(one.role, "model", one.save_folder_name)
        model.head.load_state_dict(clients[0].model.classifier.state_dict())
        save_item(model, one.role, "model", one.save_folder_name)
    server.train()
    protos = load_item("Server", "global_protos", server.save_folder_name)
    known = sorted(protos)
    means_GD = torch.stack([protos[c] for c in known])
    rows, found = clients[0].data.test, []
    for one in server.clients:
        base = load_item(one.role, "model", one.save_folder_name).base.eval()
        with torch.no_grad():
            z_ND = torch.cat(
                [base(clients[0].rows_as_inputs(rows, some)) for some in torch.arange(len(rows)).split(256)]
            )
        nearest = torch.tensor(known)[torch.cdist(z_ND, means_GD).argmin(1)]
        found.append((nearest == rows.labels).float().mean().item())
    print(json.dumps({"accuracy": sum(found) / len(found)}))


def theirs(clone: Path, shared: Shared, settings: Any, folder: Path) -> tuple[float, float]:
    """Seconds of the clone's process and its accuracy. SystemExit with its last words when it fails."""
    given, system = folder / "given.json", folder / "system"
    system.mkdir()
    facts = {name: getattr(shared, name) for name in ("rounds", "epochs", "batch", "rate", "clients")}
    given.write_text(json.dumps(facts | {"settings": settings, "clone": str(clone.resolve())}))
    # it keeps whole models as pickles of its own making, which torch reads only when told so
    env = os.environ | {"PYTHONPATH": str(ROOT), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    command, begun = [sys.executable, str(Path(__file__).resolve()), "--child", str(given)], time.monotonic()
    done = subprocess.run(command, cwd=system, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"bench/peers/htfl.py: {(done.stderr.strip().splitlines() or [f'ended with {done.returncode}'])[-1]}"
        )
    return time.monotonic() - begun, json.loads(done.stdout.strip().splitlines()[-1])["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clone", type=Path, default=os.environ.get("HTFLLIB"))
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(asked.child)
    if asked.clone is None or not Path(asked.clone, "system", "flcore").is_dir():
        raise SystemExit("bench/peers/htfl.py: name a clone of TsingZ0/HtFLlib by --clone or the variable HTFLLIB")
    shared = Shared(rounds=asked.rounds, clients=asked.clients)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        given = overrides(shared, str(folder / "run"))
        settings = composition.plain(composition.complete(composition.compose(given)))
        mine = ours(given)
        accuracy = read_lines(folder / "run" / "rounds.jsonl")[-1]["metrics"]["client/accuracy/image"]
        seconds, theirs_right = theirs(Path(asked.clone), shared, settings, folder)
    told = {"ratio": mine / seconds, "ours": mine, "peer": seconds, "accuracy": accuracy, "peer_accuracy": theirs_right}
    print(json.dumps({"fedproto": told}))


if __name__ == "__main__":
    main()
