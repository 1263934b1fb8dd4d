"""Records what fixed-seed runs give, and checks later that the code still gives the same, bit for bit.

    python tools/traces.py record FILE [--what toy|embedded|all] [--only NAME ...]
    python tools/traces.py check FILE  [--what ...] [--only ...] [--ignore PATTERN ...]

Use it around a change that must not change results: record before it, check after it. A case is one run of a whole
federation in this process: the real ServerApp, ClientApp and messages, on toy data and models of milliseconds
("toy") or on the embedded data and models ("embedded"). A trace holds each round's metrics, each ledger entry and a
hash of every tensor that the server and the clients keep at the end. It also holds the composed settings of each
method and preset (the case "settings"), so that a changed default is seen too. Times and paths are left out.

`check` prints "same" or the first difference of each case, and ends with 1 if there is one. `--ignore` takes patterns
of differences that are meant, for example 'round * metrics privacy/*' or 'settings method/* timeouts.*'. `record` into
a file that exists replaces the traces of the given cases and keeps the others. Both sides of a comparison need the
same machine type and the same versions: another CPU or PyTorch rounds differently. `check` warns about that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; with more threads, sums are added in another order
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the code beside this file, whatever is installed

import torch
from safetensors import safe_open

from client_app.app import app as client_app
from florilegium.catalogue import CATALOGUE
from florilegium.config import composition
from florilegium.contract.tiny_models import toy_overrides
from server_app.app import app as server_app
from tests.local_grid import run_apps

ROOT = Path(__file__).resolve().parents[1]
RENAMED = {"row": "arm"}  # keys of records, old name to new name: both sides of a comparison are read with the new one
TIMES = ("seconds", "time")  # the last part of a metric's or ledger field's name that says it is a time

IMAGES = "clients.mix=[{modality: image, model: resnet}, {modality: image, model: resnet}]"
VITS = "clients.mix=[{modality: image, model: vit}, {modality: image, model: vit}]"
GROUPS = (
    "clients.mix=[{modality: image, model: resnet}, {modality: image, model: resnet}, "
    "{modality: image, model: vit}, {modality: image, model: vit}]"
)
PAIRS = (
    "clients.mix=[{modality: image, model: resnet}, {modality: text, model: bert}, "
    "{modality: pair, model: resnet+bert}, {modality: pair, model: vit+distilbert}]"
)
PUBLIC = ["method.server.public.samples=12", "method.client.pretrain_epochs=1"]
SMALL = {
    "fedmmkt": ["method.server.samples=12", "tuning.batch=8", "method.client.pretrain_epochs=1"],
    "selftuned": ["method.server.samples=8", "tuning.batch=8"],
    "centralised": ["method.server.samples=8", "tuning.batch=8"],
    **{name: ["tuning.batch=8", *PUBLIC] for name in ("fedmd", "fedgems", "fedet")},
    "fedafd": ["method.client.pretrain_epochs=1", "method.client.local_epochs=1", "method.server.pretrain_epochs=1"],
    "creamfl": PUBLIC,
    "fedmekt": PUBLIC,
    "standalone": ["method.client.pretrain_epochs=1"],
}
PRESETS = sorted(path.stem for path in (composition.CONF / "experiment").glob("*.yaml"))


@dataclass(frozen=True)
class Case:
    """One run: Hydra overrides, on toy or embedded data."""

    overrides: tuple[str, ...]
    what: str = "toy"
    few: bool = False  # few samples and epochs
    alike: bool = True  # on toy data two clients of one architecture, for the methods that need it
    killed: bool = False  # dies in its last round and is resumed


# -- the cases -------------------------------------------------------------------------------------------------------


def toy(method: str, *overrides: str, small: bool = True, killed: bool = False) -> Case:
    """`method` on toy data, with few samples and epochs if `small`, else with its own defaults."""
    return Case((f"method={method}", *overrides), few=small, killed=killed)


def variants() -> Iterator[tuple[str, Case]]:
    """Settings that take other paths through the code than the defaults do."""
    for variant in ("logit", "unimodal"):
        yield f"fedmmkt/{variant}", toy("fedmmkt", f"method.variant={variant}")
    for exchanges in ("joined", "separate"):
        yield f"fedmmkt/{exchanges}", toy("fedmmkt", f"method.server.exchanges={exchanges}")
    for guidance in ("feddifrc", "semanticfl", "both"):
        yield f"fedavg/{guidance}", toy("fedavg", f"guidance@method.client.guidance={guidance}")
    yield "fedavg/architecture", toy("fedavg", GROUPS, "method.server.groups=architecture")
    yield (
        "fedavg/ten",
        Case(
            (
                "method=fedavg",
                "clients=ten",
                "architectures@clients.architectures=toy",
                "clients.width=32",
                "clients.tokenizer=toy",
                "clients.tokens=12",
                "clients.partition.name=iid",
            ),
            alike=False,
        ),
    )
    yield "fedavg/half", toy("fedavg", GROUPS.replace("vit", "resnet"), "+cohort=half")
    for partition in ("pathological", "rotation"):
        yield f"fedavg/{partition}", toy("fedavg", f"partition@clients.partition={partition}")
    yield "fedmmkt/half", toy("fedmmkt", "+cohort=half")
    for strategy in ("FedAvgM", "FedMedian", "FedYogi"):
        yield f"flower/{strategy}", toy("flower", f"method.server.strategy={strategy}")
    yield (
        "flower/dp",
        toy(
            "flower",
            "method.server.strategy=FedAvg",
            "method.server.wrapper=DifferentialPrivacyServerSideFixedClipping",
            "+method.server.wrapper_options.noise_multiplier=0.1",
            "+method.server.wrapper_options.clipping_norm=5.0",
        ),
    )
    for method in ("fedmd", "fedgems", "fedet", "creamfl", "fedmekt"):
        yield f"{method}/synthetic", toy(method, "method.public_set=synthetic")
    for method in ("fedmd", "creamfl", "fedmekt", "fedafd"):
        yield f"{method}/pairs", toy(method, PAIRS)
    yield (
        "fedmmkt/references",
        toy(
            "fedmmkt",
            "references=all",
            "references.standalone.client.pretrain_epochs=1",
            *(
                f"references.{name}.server.samples=8"
                for name in ("self_label", "self_caption", "self_representation", "centralised")
            ),
        ),
    )
    for preset in PRESETS:
        yield f"experiment/{preset}", Case((f"experiment={preset}",), few=True)


#: what leaves without noise, so that the cases go on as they were recorded
RELEASED = {
    "gaussian": ("privacy.representations.release=[figures,labels]",),
    "gnmax": ("privacy.votes.release=[vectors]",),
    "dpsgd": (),
}


def guarded() -> Iterator[tuple[str, Case]]:
    """Privacy (with noise from the seed), defences, an attack, and runs that are resumed."""
    for method, name in (
        ("fedmmkt", "gaussian"),
        ("fedmd", "gaussian"),
        ("creamfl", "gaussian"),
        ("fedmmkt", "gnmax"),
        ("fedmekt", "gnmax"),
        ("fedmmkt", "dpsgd"),
    ):
        yield f"{method}/{name}", toy(method, f"privacy={name}", "privacy.seeded=true", *RELEASED[name])
    yield "fedavg/dpsgd", toy("fedavg", VITS, "privacy=dpsgd", "privacy.seeded=true")
    for method in ("fedmmkt", "fedmd", "creamfl"):
        yield f"{method}/defended", toy(method, "defence=all")
        yield f"{method}/collude", toy(method, "attack=collude")
    yield (
        "fedmmkt/everything",
        toy(
            "fedmmkt",
            "attack=collude",
            "defence=all",
            "privacy=[gaussian,gnmax]",
            "privacy.seeded=true",
            *RELEASED["gaussian"],
            *RELEASED["gnmax"],
        ),
    )
    for method in ("fedmmkt", "scaffold", "fedafd"):
        yield f"{method}/resumed", toy(method, killed=True)


def embedded() -> Iterator[tuple[str, Case]]:
    """The embedded data and models, with fewer samples and epochs than by default."""
    yield (
        "embedded/fedmmkt",
        Case(
            (
                "data=emoji",
                "method=fedmmkt",
                "method.server.samples=48",
                "method.client.pretrain_epochs=2",
                "method.client.distill_epochs=2",
                "evaluation.images_per_class=2",
                "evaluation.every=2",
            ),
            "embedded",
        ),
    )
    yield (
        "embedded/feddifrc",
        Case(
            (
                "data=fashion",
                "method=feddifrc",
                "method.client.local_epochs=1",
                "method.client.guidance.calibration_images=64",
                "cohort.fraction=0.2",
                "clients.partition.imbalance=0.01",
                "evaluation.every=2",
                "method.client.guidance.feddifrc.negatives=2",
                "diffusion.features.calibration=2000",
            ),
            "embedded",
        ),
    )


def cases() -> dict[str, Case]:
    """All cases by name."""
    small = {name: toy(name) for name in CATALOGUE}
    default = {f"{name}/default": toy(name, small=False) for name in CATALOGUE}
    return {**small, **default, **dict(variants()), **dict(guarded()), **dict(embedded())}


# -- running ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The server process dies."""


def federate(conf: Any, tamper: Callable | None = None) -> int:
    """Run the settings `conf` in this process; the number of messages sent."""
    run_config = {"settings": json.dumps(composition.plain(conf)), "overrides": ""}
    return len(run_apps(server_app, client_app, len(conf.clients.mix), run_config, tamper).sent)


def die_at(number: int) -> Callable:
    """A `tamper` of the local grid that kills the server at its message `number`."""
    left = number

    def killed(question: Any, reply: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            raise Killed
        return reply

    return killed


def run(case: Case, folder: Path) -> Path:
    """Run `case` with everything it writes below `folder`; the run directory."""
    given = ["references=none", "rounds=2"]
    if case.what == "toy":
        given += ["data=toy", "clients=toy", *toy_overrides()]
        method = composition.compose([*given, *case.overrides]).method.name
        given += [IMAGES] if case.alike and CATALOGUE[method].one_architecture else []
        given += ["evaluation.images_per_class=2", *SMALL.get(method, [])] if case.few else []

    def conf(name: str) -> Any:
        return composition.complete(composition.compose([*given, *case.overrides, f"out={folder / name}"]))

    whole = conf("whole")
    sent = federate(whole)
    if not case.killed:
        return Path(whole.out)
    part = conf("part")
    try:
        federate(part, die_at(round(0.8 * sent)))  # in the last round
    except Killed:
        part.resume = True
        federate(part)
        return Path(part.out)
    raise RuntimeError("the run that should die came to its end")


def trace(name: str) -> tuple[str, dict | str, float]:
    """(name, trace or what went wrong, seconds) of one case, run in a new folder."""
    started = time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="traces-") as made, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # the logs of this process, which only runs this case
        os.dup2(nowhere.fileno(), 2)
        os.chdir(made)  # caches of features are made where a run starts
        try:
            found: dict | str = composed() if name == "settings" else read(run(cases()[name], Path(made)))
        except Exception:
            found = traceback.format_exc()
        finally:
            os.chdir(ROOT)
    return name, found, time.monotonic() - started


def traces(names: list[str], jobs: int) -> Iterator[tuple[str, dict | str, float]]:
    """`trace` of each name. Each runs in a process of its own, so that no case sees what another left in memory."""
    if any(name != "settings" and cases()[name].what == "toy" for name in names):
        toy_overrides()  # built here once, for all
    with get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap(trace, names, chunksize=1)


# -- reading a run ---------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def untimed(record: dict) -> dict:
    """`record` without times, with the keys' new names."""
    return {RENAMED.get(key, key): value for key, value in record.items() if re.split(r"[/_]", key)[-1] not in TIMES}


def read(out: Path) -> dict:
    """The trace of the run directory `out`: {rounds, ledger, tensors}."""
    rounds = [untimed(r) | {"metrics": untimed(r["metrics"])} for r in lines(out / "rounds.jsonl")]
    return {"rounds": rounds, "ledger": [untimed(r) for r in lines(out / "ledger.jsonl")], "tensors": tensors(out)}


def tensors(out: Path) -> dict[str, str]:
    """{"<arm> server|client-<k>/<part> <tensor>": hash of type, shape and bytes}, of each part's newest file."""
    newest: dict[str, Path] = {}
    for path in sorted(out.rglob("*.safetensors")):
        place, part = path.parent, re.sub(r"[-\d]+$", "", path.stem)  # the numbers are the round and the step
        if "model" in path.relative_to(out).parts[:-1]:
            continue  # the generator in the format of diffusers: the server's checkpoint holds it too
        owner = f"{place.parent.name} {place.name}" if place.name.startswith("client-") else f"{place.name} server"
        newest[f"{owner}/{part}"] = path  # later rounds and steps are sorted later
    found = {}
    for key, path in newest.items():
        with safe_open(str(path), framework="pt") as file:
            found |= {f"{key} {name}": digest(file.get_tensor(name)) for name in file.keys()}
    return dict(sorted(found.items()))


def digest(value: torch.Tensor) -> str:
    hashed = hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode())
    hashed.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:32]


def composed() -> dict:
    """The composed settings of each method and preset, as `florilegium run` gets them: {"settings": {name: ...}}."""
    chosen = [*(f"method={name}" for name in CATALOGUE), *(f"experiment={name}" for name in PRESETS)]
    return {
        "settings": {choice.replace("=", "/"): composition.plain(composition.compose([choice])) for choice in chosen}
    }


# -- comparing -------------------------------------------------------------------------------------------------------


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """{dotted path: leaf} of nested dicts and lists, with the keys' new names. An empty dict or list is a leaf."""
    if not isinstance(value, (dict, list)) or not value:
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Any] = {}
    for key, item in items:
        found |= flat(item, f"{path}.{RENAMED.get(key, key)}" if path else str(RENAMED.get(key, key)))
    return found


def facts(found: dict) -> dict[str, Any]:
    """Every value of a trace, by a name for a reader, in the order in which a run makes them."""
    told: dict[str, Any] = {}
    for record in found.get("rounds", []):
        record = untimed(record)
        place = f"{record.get('arm')} round {record['round']}"
        told[place] = "recorded"
        told |= {f"{place} metrics {name}": value for name, value in untimed(record["metrics"]).items()}
    for number, entry in enumerate(found.get("ledger", []), 1):
        told |= {f"ledger entry {number} {name}": value for name, value in untimed(entry).items()}
    told |= {f"tensors {name}": value for name, value in found.get("tensors", {}).items()}
    for choice, given in found.get("settings", {}).items():
        told |= {f"settings {choice} {name}": value for name, value in flat(given).items()}
    return told


def same(a: Any, b: Any) -> bool:
    """Equal in value and kind; floats bit for bit (their repr is exact)."""
    return type(a) is type(b) and repr(a) == repr(b)


def differences(expected: dict, got: dict, ignored: list[str]) -> list[str]:
    """One line for each value that differs, in the order in which a run makes them."""
    was, now = facts(expected), facts(got)
    found = []
    for name in dict.fromkeys([*was, *now]):
        a, b = was.get(name, "(absent)"), now.get(name, "(absent)")
        if not same(a, b) and not any(fnmatch(name, f"*{pattern}") for pattern in ignored):
            found.append(f"{name}: expected {a!r}, got {b!r}")
    return found


# -- commands --------------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """What decides how numbers are rounded."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def load(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {"machine": machine(), "cases": {}}


def record(args: argparse.Namespace, names: list[str]) -> int:
    held, failed = load(args.file), 0
    for name, found, seconds in traces(names, args.jobs):
        if isinstance(found, str):
            failed += 1
            print(f"{name}: FAILED\n{found}", flush=True)
            continue
        held["cases"][name] = found
        args.file.write_text(json.dumps(held, indent=1) + "\n")
        print(f"{name}: recorded in {seconds:.1f} s", flush=True)
    return int(failed > 0)


def check(args: argparse.Namespace, names: list[str]) -> int:
    held, failed = load(args.file), 0
    if held["machine"] != machine():
        print(f"warning: recorded on {held['machine']}, this is {machine()}; numbers may be rounded differently")
    for name in [name for name in names if name not in held["cases"]]:
        print(f"{name}: not recorded, not checked")
    for name, found, _ in traces([name for name in names if name in held["cases"]], args.jobs):
        if isinstance(found, str):
            failed += 1
            print(f"{name}: FAILED\n{found}", flush=True)
            continue
        unlike = differences(held["cases"][name], found, args.ignore)
        failed += bool(unlike)
        more = f" (and {len(unlike) - 1} more)" if len(unlike) > 1 else ""
        shown = unlike if args.every else [f"{line}{more}" for line in unlike[:1]]
        print(f"{name}: " + ("\n    ".join(shown) or "same"), flush=True)
    return int(failed > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "check"))
    parser.add_argument("file", type=Path, metavar="FILE", help="the traces, as JSON")
    parser.add_argument("--what", choices=("toy", "embedded", "all"), default="all", help="toy takes minutes")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=["*"], help="cases, or patterns: 'fedmmkt*'")
    parser.add_argument("--ignore", nargs="+", metavar="PATTERN", default=[], help="differences that are meant")
    parser.add_argument("--every", action="store_true", help="print all differences, not only the first")
    parser.add_argument("--jobs", type=int, default=1, help="cases at one time")
    parser.add_argument("--list", action="store_true", help="print the names of the cases, run nothing")
    args = parser.parse_args()
    args.file = args.file.resolve()
    known = {"settings": "toy", **{name: case.what for name, case in cases().items()}}
    names = [
        name
        for name, what in known.items()
        if args.what in ("all", what) and any(fnmatch(name, pattern) for pattern in args.only)
    ]
    if not names:
        parser.error(f"no case is named {', '.join(args.only)}; --list prints all")
    if args.list:
        print(*names, sep="\n")
        return 0
    return (record if args.command == "record" else check)(args, names)


if __name__ == "__main__":
    sys.exit(main())
