"""What a deployment costs beside its work, over loopback with TLS; each figure is a ratio measured in one run.

    python bench/deployment.py                       # ready, phase
    python bench/deployment.py arrays nodes          # 100 MB of arrays; 50 SuperNodes for 20 rounds (much memory)
    python bench/deployment.py arrays --mb 20 nodes --nodes 6 --rounds 3

It runs a federation as `florilegium deploy local` does, with an app of its own: a reply of as many bytes as asked for,
after as many seconds of work as asked for.
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
from pathlib import Path

from florilegium import assets
from florilegium.config import composition
from florilegium.runtime import superlink, warm
from florilegium.runtime.local import LocalFederation

ROOT = Path(__file__).resolve().parents[1]

PROJECT = """
[project]
name = "exchange"
version = "1.0.0"
dependencies = ["flwr>=1.39"]
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "exchange.server:app"
clientapp = "exchange.client:app"
[tool.flwr.app.config]
plan = ""
out = ""
"""
CLIENT = """
import time
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.query()
def answer(message, context):
    asked = message.content["asked"]
    time.sleep(float(asked["seconds"]))
    values = np.random.default_rng(0).random(int(asked["bytes"]) // 4, dtype=np.float32)
    content = {"arrays": ArrayRecord([values]), "asked": ConfigRecord({"seconds": float(asked["seconds"])})}
    return Message(RecordDict(content), reply_to=message)
"""
SERVER = """
import json
import time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
def ours(grid, messages, limit=900.0):
    waiting, found, end = set(grid.push_messages(messages)), 0, time.monotonic() + limit
    while waiting and time.monotonic() < end:
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            found += not reply.has_error()
        time.sleep(0.05)
    return found
def flowers(grid, messages):
    return sum(not reply.has_error() for reply in grid.send_and_receive(messages, timeout=900.0))
@app.main()
def main(grid, context):
    plan = json.loads(context.run_config["plan"])
    while len(list(grid.get_node_ids())) < plan["nodes"]:
        time.sleep(0.2)
    told = []
    for exchange in plan["exchanges"]:
        asked = RecordDict({"asked": ConfigRecord({"seconds": exchange["seconds"], "bytes": exchange["bytes"]})})
        messages = [Message(asked, node, "query") for node in grid.get_node_ids()]
        begun = time.monotonic()
        replies = (flowers if exchange["loop"] == "flower" else ours)(grid, messages)
        told.append(exchange | {"took": time.monotonic() - begun, "replies": replies})
    Path(context.run_config["out"]).write_text(json.dumps(told))
"""


def exchanges(nodes: int, plan: list[dict]) -> list[dict]:
    """Run `plan`, a list of {seconds, bytes, loop: ours | flower}, on `nodes` SuperNodes: + `took`, `replies`.

    Their processes are forks of a warm one, as they would be, which has Flower alone: this app needs nothing else.
    """
    with tempfile.TemporaryDirectory(prefix="florilegium-bench-") as scratch:
        app, out = Path(scratch, "exchange"), Path(scratch, "told.json")
        (app / "exchange").mkdir(parents=True)
        for name, text in {
            "pyproject.toml": PROJECT,
            "exchange/__init__.py": "",
            "exchange/client.py": CLIENT,
            "exchange/server.py": SERVER,
        }.items():
            (app / name).write_text(textwrap.dedent(text))
        config = Path(scratch, "run.toml")
        config.write_text(f"plan = {json.dumps(json.dumps({'nodes': nodes, 'exchanges': plan}))}\nout = '{out}'\n")
        with LocalFederation(nodes, Path(scratch, "state"), str(assets.root()), libraries=()) as flower:
            run = flower.submit(app, config, None)
            while not (status := flower.status(run)).finished:
                time.sleep(1)
        if not status.completed:
            sys.exit(f"the exchange failed: {status.details}")
        told: list[dict] = json.loads(out.read_text())
        return told


READY = """
import sys
from pathlib import Path
def main():
    import client_app.app
    from florilegium.config import composition
    from florilegium.protocol.codec import Header
    from client_app.opening import open_client
    place, round = Path(sys.argv[1]), int(sys.argv[2])
    conf = composition.load({"settings": (place / "settings.json").read_text()})
    client = open_client(conf, {"partition-id": 0, "state-dir": str(place)}, Header("method", round, 1))
    client.model
    if round == 1:
        client.save()
if __name__ == "__main__":
    main()
"""


def ready(repeats: int = 5) -> dict[str, float]:
    """A client process until it can answer (imports, its rows and its private model from disk), over `import torch`: as
    a site has it, forked from a warm process, and cold; and what the model classes of transformers alone take."""
    with tempfile.TemporaryDirectory(prefix="florilegium-bench-") as place:
        conf = composition.complete(composition.compose(["data=emoji", f"out={place}/run"]))
        Path(place, "settings.json").write_text(json.dumps(composition.plain(conf)))
        Path(place, "bench_ready.py").write_text(READY)
        environment = superlink.quiet_environment({"PYTHONPATH": os.pathsep.join([place, str(ROOT)])})
        python = [sys.executable, "-c"]
        programs = {
            "torch": [*python, "import torch"],
            "model classes": [*python, "import torch; from transformers import ResNetModel"],
            "ready, cold": [sys.executable, "-m", "bench_ready", place, "2"],
            "ready": [warm.COMMAND, place, "2"],
        }
        with warm.Warm(Path(place), environment, "false", "bench_ready:main") as given:
            for name, round in (("ready, cold", "1"), ("ready", "2")):  # leaves rows and model; then is warm
                subprocess.run([*programs[name][:-1], round], check=True, env=given)
            took: dict[str, list[float]] = {name: [] for name in programs}
            for _ in range(repeats):
                for name, program in programs.items():
                    begun = time.monotonic()
                    subprocess.run(program, check=True, capture_output=True, env=given)
                    took[name].append(time.monotonic() - begun)
    least = {name: min(times) for name, times in took.items()}
    return {
        "import torch, s": least["torch"],
        **{f"{name} / torch": least[name] / least["torch"] for name in programs if name != "torch"},
    }


def phase(work: float = 10.0, repeats: int = 4) -> dict[str, float]:
    """A phase with `work` seconds at the client, over an empty exchange plus that work."""
    pair = [{"seconds": 0.0, "bytes": 1000, "loop": "ours"}, {"seconds": work, "bytes": 1000, "loop": "ours"}]
    told = exchanges(2, [pair[0], *(pair * repeats)])[1:]
    empty, whole = (statistics.median(e["took"] for e in told[i::2]) for i in range(2))
    return {"empty exchange, s": empty, "phase / (empty + work)": whole / (empty + work)}


def arrays(mb: int = 100, repeats: int = 3) -> dict[str, float]:
    """`mb` MB up from each of two nodes: throughput of our loop over that of Flower's own exchange."""
    plan = [{"seconds": 0.0, "bytes": mb * 1_000_000, "loop": loop} for loop in ("ours", "flower")]
    told = exchanges(2, [plan[0], *(plan * repeats)])[1:]
    ours, flowers = (statistics.median(e["took"] for e in told[i::2]) for i in range(2))
    return {"ours, s": ours, "ours / Flower's throughput": flowers / ours}


def nodes(count: int = 50, rounds: int = 20) -> dict[str, float]:
    """Replies that came over replies that were asked for."""
    told = exchanges(count, [{"seconds": 0.0, "bytes": 1000, "loop": "ours"}] * rounds)
    return {
        "replies / asked": sum(e["replies"] for e in told) / (count * rounds),
        "seconds a round": statistics.median(e["took"] for e in told),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=("ready", "phase", "arrays", "nodes"))
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    ways = {
        "ready": ready,
        "phase": phase,
        "arrays": lambda: arrays(given.mb),
        "nodes": lambda: nodes(given.nodes, given.rounds),
    }
    found: dict[str, float] = {}
    for what in given.what or ["ready", "phase"]:
        told = {name: round(value, 3) for name, value in ways[what]().items()}
        print(what, json.dumps(told), flush=True)
        found |= told
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(json.dumps(found))  # all of it once more, for bench/all.py
