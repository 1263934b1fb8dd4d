"""Speed and memory of full-size models on this machine's GPU, with bare diffusers beside ours.

    python bench/gpu.py                      every part, with models of published sizes and random weights
    python bench/gpu.py --parts plain,rounds some of them: plain, compiled, graphs, tuning, clients, shares, rounds
    python bench/gpu.py --model DIR          a Stable Diffusion of your own in the parts plain to tuning
    python bench/gpu.py --tiny --device cpu  tiny models: shows that the script works, measures nothing

Each part is a process of its own with a time limit (--limit, seconds), so a compiler that does not end costs one part.
Each figure is measured alone, with the peak of the device's memory reset before. Nothing is fetched. What is known so
far is printed, and written as JSON (--out) after each part.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import gpu_models
from florilegium.config.diffusion import DiffusionSettings, FeatureSettings, TuneSettings
from florilegium.diffusion.features import FeatureExtractor
from florilegium.diffusion.load import load
from florilegium.diffusion.tuning import TuneTexts
from florilegium.runs.reader import read_lines

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # bf16, dense, FLOP/s
Figures = dict[str, Any]


# -- measuring --------------------------------------------------------------------------------------------------------


class Device:
    """Clock and memory of a device."""

    def __init__(self, name: str) -> None:
        self.name, self.cuda = name, name.startswith("cuda")

    def reset(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    @property
    def peak(self) -> float | None:
        """GiB."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else None

    def seconds(self, work: Callable[[], Any], warm: int = 1, times: int = 2) -> float:
        """The shortest of `times`, after `warm` calls that are not counted."""
        for _ in range(warm):
            work()
        found = []
        for _ in range(times):
            self.wait()
            before = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - before)
        return min(found)


def settings(given: argparse.Namespace, **more: Any) -> DiffusionSettings:
    features = FeatureSettings(layers=[1], dims=[8], batch=given.features_batch, size=given.features_side)
    told = {"device": given.device, "dtype": given.dtype, "steps": given.steps, "batch": given.batch, "guidance": 7.5}
    return DiffusionSettings(**told | {"features": features} | more)


def prompts(count: int) -> tuple[list[str], list[int]]:
    return [f"a picture of a cat, number {n}." for n in range(count)], list(range(count))


# -- a generator of the size of Stable Diffusion 1.5 ------------------------------------------------------------------


def bare_synthesis(given: argparse.Namespace, device: Device, place: str) -> Figures:
    """Diffusers as its documentation shows it: weights in the dtype, no more."""
    from diffusers import DiffusionPipeline

    device.reset()
    pipe = DiffusionPipeline.from_pretrained(place, torch_dtype=getattr(torch, given.dtype)).to(given.device)
    pipe.set_progress_bar_config(disable=True)
    texts, _ = prompts(given.batch)
    draw = lambda: pipe(texts, num_inference_steps=given.steps, guidance_scale=7.5, output_type="pt")  # noqa: E731
    return {"images_per_s": given.batch / device.seconds(draw), "peak_gib": device.peak}


def our_synthesis(given: argparse.Namespace, device: Device, place: str, mode: str | None) -> Figures:
    device.reset()
    made = load(settings(given, compile=mode), place)
    texts, seeds = prompts(given.batch)
    before = time.perf_counter()
    made.synthesize(texts, seeds)
    device.wait()
    first = time.perf_counter() - before
    taken = device.seconds(lambda: made.synthesize(texts, seeds), warm=1 if mode else 0)
    return {"images_per_s": given.batch / taken, "peak_gib": device.peak, "first_s": first}


def product_rate(device: Device) -> float:
    """FLOP/s of a large dense product in bf16."""
    side = 8192 if device.cuda else 256
    a, b = (torch.randn(side, side, device=device.name).bfloat16() for _ in range(2))
    return 2 * side**3 / device.seconds(lambda: a @ b, warm=3, times=10)


def decoder_call(
    given: argparse.Namespace, device: Device, place: str, mode: str | None, channels_last: bool = False
) -> Figures:
    """FLOP/s of one U-Net call, counted by PyTorch, as a share of the card's rate of dense bf16 products: of the data
    sheet's, and of the rate that a large product reached here."""
    from torch.utils.flop_counter import FlopCounterMode

    device.reset()
    made: Any = load(settings(given), place)
    decoder, count = made.decoder, 2 * given.batch
    if channels_last:
        decoder.to(memory_format=torch.channels_last)
    noisy = torch.randn(count, *made.noise_shape).to(given.device, made.dtype)
    texts = made.view.texts(made.pipe, ["a"])[[0] * count].to(made.dtype)
    at = torch.tensor(500, device=given.device)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            made.tuner.network(noisy, at, texts)
        if mode:
            decoder.compile(mode=mode)
        taken = device.seconds(lambda: made.tuner.network(noisy, at, texts), warm=3, times=5)
    rate, product = counter.get_total_flops() / taken, product_rate(device)
    name = torch.cuda.get_device_name() if device.cuda else "cpu"
    sheet = next((value for card, value in PEAKS.items() if card in name), None)
    shares = {"share_of_sheet": rate / sheet if sheet else None, "share_of_product": rate / product}
    return {"tflops": rate / 1e12, **shares, "ms": taken * 1e3, "peak_gib": device.peak}


def bare_features(given: argparse.Namespace, device: Device, place: str) -> Figures:
    """VAE encoder and the whole U-Net, once an image."""
    from diffusers import DiffusionPipeline

    device.reset()
    dtype, count = getattr(torch, given.dtype), given.features_batch
    pipe: Any = DiffusionPipeline.from_pretrained(place, torch_dtype=dtype).to(given.device)
    pixels = torch.rand(count, 3, given.features_side, given.features_side, device=given.device, dtype=dtype)
    made: Any = load(settings(given), place)
    texts = made.view.texts(made.pipe, [""])[[0] * count].to(dtype)
    network = made.view.network(getattr(pipe, made.view.network.part))

    @torch.no_grad()
    def look() -> None:
        network(pipe.vae.encode(pixels).latent_dist.mean, 300, texts)

    return {"images_per_s": count / device.seconds(look, times=4), "peak_gib": device.peak}


def our_features(given: argparse.Namespace, device: Device, place: str) -> Figures:
    """The last layer, so that the whole U-Net runs too."""
    device.reset()
    told = settings(given)
    extractor = FeatureExtractor(place, told)
    last = FeatureSettings(layers=[extractor.blocks], dims=[8], batch=given.features_batch, size=given.features_side)
    extractor = FeatureExtractor(place, DiffusionSettings(**{**vars(told), "features": last}))
    count = given.features_batch
    images = torch.randint(0, 256, (count, 3, given.features_side, given.features_side), dtype=torch.uint8)
    ids = torch.arange(count)
    taken = device.seconds(lambda: extractor.levels(images, ids, 300, seed=0), times=4)
    return {"images_per_s": count / taken, "peak_gib": device.peak}


def tuning(given: argparse.Namespace, device: Device, place: str, lora: int | None, moments: str) -> Figures:
    """Two steps, then two more; the peak, and the bytes of a checkpoint beside those of the trained weights."""
    device.reset()
    made: Any = load(settings(given), place)
    count = 2 * given.tuning_batch
    images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)
    texts, _ = prompts(count)
    told = TuneSettings(
        batch=given.tuning_batch, epochs=1, lora=lora, checkpointing=True, fresh_moments=True, moments=moments
    )
    made.finetune(images, TuneTexts(texts, texts), None, told, rounds=(1, 2), seed=0)
    device.wait()
    before = time.perf_counter()
    made.finetune(images, TuneTexts(texts, texts), None, told, rounds=(2, 2), seed=0)
    device.wait()
    seconds = time.perf_counter() - before
    tensors, _ = made.state()
    size = sum(x.numel() * x.element_size() for x in tensors.values())
    trained = sum(p.numel() * 4 for p in made.tuner.trained.values())
    rate = count / seconds
    return {"peak_gib": device.peak, "rows_per_s": rate, "checkpoint_gib": size / 2**30, "of_trained": size / trained}


# -- clients of full size ---------------------------------------------------------------------------------------------


def client_training(
    given: argparse.Namespace, device: Device, place: str, kind: str, precision: str, training: str
) -> Figures:
    """Private batches of 32 rows of the lexicon, images of 224 pixels, texts of at most 128 tokens, with AdamW."""
    from client_app.blocks.training import task_terms
    from client_app.opening import open_client
    from florilegium.config import composition
    from florilegium.learning.fit import fit
    from florilegium.protocol.codec import Header

    device.reset()
    modality = "image" if kind in ("vit", "beit", "resnet") else "text"
    conf = composition.compose(
        [
            *("method=standalone", "references=none", "data=lexicon", f"out={given.folder}/client"),
            f"clients.mix=[{{modality: {modality}, model: {kind}}}]",
            *("architectures@clients.architectures=full", "clients.tokens=128", "clients.width=768"),
            f"clients.architectures.{kind}.pretrained={place}/{kind}",
            f"+clients.architectures.{kind}.training={training}",
            *(f"clients.device={given.device}", f"clients.precision={precision}"),
        ]
    )
    batches = 2 if given.tiny else 20
    client = open_client(conf, {"partition-id": 0, "num-partitions": 1}, Header(arm="method", round=1, step=0))

    def train() -> None:
        taken = lambda epoch: islice(client.private_batches(32, epoch, "bench"), batches)  # noqa: E731
        fit(client.model, taken, lambda batch: task_terms(client, batch), lr=1e-5)

    rate = 32 * batches / device.seconds(train)
    return {"rows_per_s": rate, "peak_gib": device.peak}


# -- whole rounds -----------------------------------------------------------------------------------------------------

ROUND = [
    *("data=lexicon", "rounds=1", "references=none", "runtime=inprocess", "evaluation.images_per_class=1"),
    *("method.server.prompt_weight=100", "method.server.vote_threshold=0"),  # random models agree on nothing
    *("method.client.pretrain_epochs=1", "method.client.local_epochs=1", "method.client.distill_epochs=1"),
]
FULL_CLIENTS = [
    *("clients=fedmmkt_four", "clients.tokens=128", "clients.precision=bfloat16"),
    *("method.client.learning_rate.image=1e-4", "method.client.learning_rate.text=2e-5"),
]
#: model -> (how it is written, its group, further settings); steps and samples are few, and written into the result
ROUNDS = {
    "sd15": (gpu_models.write_sd15, ["diffusion=sd15", "diffusion.steps=25", "diffusion.batch=16"], FULL_CLIENTS),
    "glide": (gpu_models.write_glide, ["diffusion=glide", "diffusion.batch=64", "diffusion.dtype=bfloat16"], []),
    "sdxl": (gpu_models.write_sdxl, ["diffusion=sdxl", "diffusion.steps=10", "diffusion.batch=8"], []),
}


def one_round(given: argparse.Namespace, name: str) -> Figures:
    """`florilegium run` in a process of its own: FedMMKT's first round, with its evaluation before and after."""
    write, generator, clients = ROUNDS[name]
    out, samples = given.folder / f"round-{name}", 8 if given.tiny else 48 if name != "sdxl" else 16
    places = {"captioner": kept(given, "blip", gpu_models.write_blip)}
    places["clip"] = kept(given, "open_clip", gpu_models.write_open_clip)
    places["model"] = kept(given, name, write)
    told = [*ROUND, *generator, *clients, "tuning=full", f"tuning.batch={min(16, samples)}", f"out={out}"]
    told += [f"diffusion.{part}={place}" for part, place in places.items()]
    told += [f"method.server.samples={samples}", f"diffusion.device={given.device}", f"clients.device={given.device}"]
    if clients:
        backbones = kept(given, "backbones", gpu_models.write_backbones)
        told += [f"clients.architectures.{k}.pretrained={backbones}/{k}" for k in ("vit", "beit", "bert", "distilbert")]
    if given.tiny:
        told += ["diffusion.size=16", "diffusion.features.size=16", "diffusion.captions.min_tokens=0"]
        told += ["diffusion.dtype=float32", "diffusion.steps=2", "diffusion.upsample_steps='2'"]
    found = child(given, ["--run", *told])
    steps = read_lines(out / "rounds.jsonl")[-1]["metrics"].get("t2i/steps")
    return {"samples": samples, **recorded(out), **found, "t2i_steps": steps}


def recorded(out: Path) -> Figures:
    """The seconds of each round of a run, and how many faults its ledger has."""
    seconds = {f"round_{r['round']}_s": r["seconds"] for r in read_lines(out / "rounds.jsonl")}
    return {**seconds, "faults": sum(bool(entry.get("fault")) for entry in read_lines(out / "ledger.jsonl"))}


def run_here(overrides: list[str], report: Path) -> None:
    """`florilegium run` in this process, then the peak of the device's memory."""
    from florilegium.cli.main import main as command

    sys.argv = ["florilegium", "run", *overrides]
    before = time.perf_counter()
    try:
        command()
    except SystemExit as end:
        if end.code:
            raise
    whole = round(time.perf_counter() - before, 1)
    peak = round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None
    report.write_text(json.dumps({"process_s": whole, "peak_gib": peak}))


def child(given: argparse.Namespace, arguments: list[str]) -> Figures:
    """What a process of this script reports. RuntimeError with the end of what it said where it fails."""
    report = given.folder / "report.json"
    report.unlink(missing_ok=True)
    line = [sys.executable, __file__, "--report", str(report), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=given.limit, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip()[-600:])
    return json.loads(report.read_text())


#: how clients share the device -> settings of two rounds of FedMMKT with four small clients
SHARES = {
    "simulation, client_gpus=0.25": ["runtime=simulation", "runtime.client_gpus=0.25", "runtime.gpus=1"],
    "local, warm process": ["runtime=local", "runtime.warm=true"],
    "local, cold process": ["runtime=local", "runtime.warm=false"],
    "inprocess": ["runtime=inprocess"],
}


def shared_round(given: argparse.Namespace, name: str) -> Figures:
    """Two rounds on the embedded models with all clients on the device: that it works, and its seconds."""
    out = given.folder / ("shares-" + "".join(c for c in name if c.isalnum()))
    told = ["data=lexicon", "clients=mixed", "rounds=2", "references=none", "method.server.samples=48", f"out={out}"]
    told += ["evaluation.images_per_class=1", f"diffusion.device={given.device}", f"clients.device={given.device}"]
    told += ["method.client.pretrain_epochs=1", "method.client.local_epochs=1", *SHARES[name]]
    found = child(given, ["--run", *told])
    return {**recorded(out), "process_s": found["process_s"]}


# -- parts ------------------------------------------------------------------------------------------------------------


def kept(given: argparse.Namespace, name: str, write: Callable[[Path, bool], Any]) -> str:
    """The directory of a model below the folder, written once, on the device because that is faster."""
    place = given.folder / name
    if not place.exists():
        torch.manual_seed(0)
        with torch.device(given.device):
            write(place, given.tiny)
    return str(place)


Measured = Iterator[tuple[str, Callable[[], Figures]]]  # (name, how it is measured) of each figure of a part


def stable(given: argparse.Namespace) -> str:
    """The pipeline of the parts plain to tuning."""
    return given.model or kept(given, "sd15", gpu_models.write_sd15)


def plain(given: argparse.Namespace, device: Device) -> Measured:
    yield "bare synthesis", lambda: bare_synthesis(given, device, stable(given))
    yield "our synthesis", lambda: our_synthesis(given, device, stable(given), None)
    yield "bare features", lambda: bare_features(given, device, stable(given))
    yield "our features", lambda: our_features(given, device, stable(given))
    yield "decoder call", lambda: decoder_call(given, device, stable(given), None)
    yield "decoder call, channels last", lambda: decoder_call(given, device, stable(given), None, True)


def with_mode(mode: str) -> Callable[[argparse.Namespace, Device], Measured]:
    """The part of one way to compile."""

    def part(given: argparse.Namespace, device: Device) -> Measured:
        yield f"our synthesis, compile {mode}", lambda: our_synthesis(given, device, stable(given), mode)
        yield f"decoder call, compile {mode}", lambda: decoder_call(given, device, stable(given), mode)

    return part


def tunings(given: argparse.Namespace, device: Device) -> Measured:
    for name, lora, moments in (("LoRA 16", 16, "float32"), ("whole", None, "float32"), ("whole, int8", None, "int8")):
        yield f"tuning, {name}", partial(tuning, given, device, stable(given), lora, moments)


def clients(given: argparse.Namespace, device: Device) -> Measured:
    place = kept(given, "backbones", gpu_models.write_backbones)
    for kind in ("vit", "beit", "resnet", "bert", "distilbert", "roberta"):
        for precision in ("float32", "bfloat16"):
            yield f"client {kind}, {precision}", partial(client_training, given, device, place, kind, precision, "full")
    yield "client beit, bfloat16, LoRA 8", partial(client_training, given, device, place, "beit", "bfloat16", "lora")


def rounds(given: argparse.Namespace, _: Device) -> Measured:
    for name in ROUNDS:
        yield f"FedMMKT, a round, {name}", partial(one_round, given, name)


def shares(given: argparse.Namespace, _: Device) -> Measured:
    for name in SHARES:
        yield f"FedMMKT, two rounds, {name}", partial(shared_round, given, name)


PARTS: dict[str, Callable[[argparse.Namespace, Device], Measured]] = {
    "plain": plain,
    "compiled": with_mode("default"),
    "graphs": with_mode("reduce-overhead"),
    "tuning": tunings,
    "clients": clients,
    "shares": shares,
    "rounds": rounds,
    "autotuned": with_mode("max-autotune"),  # minutes of compilation, so only where it is asked for
}


def measure_part(given: argparse.Namespace, part: str) -> None:
    """Measures in this process; what is known is written after each figure."""
    found: dict[str, Figures] = {}
    for name, work in PARTS[part](given, Device(given.device)):
        before = time.perf_counter()
        try:
            found[name] = work()
        except Exception as error:  # one figure fails: the others are still worth having
            found[name] = {"error": f"{type(error).__name__}: {error}"[:800]}
        found[name]["measured_in_s"] = round(time.perf_counter() - before, 1)
        print_line(name, found[name])
        given.report.write_text(json.dumps(found))


def print_line(name: str, figures: Figures) -> None:
    shown = [f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items() if v is not None]
    print(f"{name:40} {'  '.join(shown)}", flush=True)


def ratios(found: dict[str, Figures]) -> dict[str, float]:
    """What has a bar (bench/board.py), of the figures that were measured."""

    def of(name: str, key: str) -> float | None:
        return found.get(name, {}).get(key)

    ours, bare, compiled = "our synthesis", "bare synthesis", "our synthesis, compile default"
    parts = {
        "synthesis": (of(ours, "images_per_s"), of(bare, "images_per_s")),
        "synthesis, compiled": (of(compiled, "images_per_s"), of(bare, "images_per_s")),
        "synthesis, peak": (of(ours, "peak_gib"), of(bare, "peak_gib")),
        "features": (of("our features", "images_per_s"), of("bare features", "images_per_s")),
        "decoder": (of("decoder call, compile reduce-overhead", "share_of_product"), 1.0),
        "LoRA, GiB": (of("tuning, LoRA 16", "peak_gib"), 1.0),
        "whole, GiB": (of("tuning, whole", "peak_gib"), 1.0),
        "checkpoint": (of("tuning, whole", "of_trained"), 1.0),
    }
    return {name: round(a / b, 3) for name, (a, b) in parts.items() if a is not None and b is not None}


def measure(given: argparse.Namespace) -> None:
    """Each part in a process of its own, with a time limit. What is known is printed as JSON last."""
    card = torch.cuda.get_device_name() if given.device.startswith("cuda") else "cpu"
    result: dict[str, Any] = {"device": card, "torch": torch.__version__, "dtype": given.dtype, "batch": given.batch}
    result["steps"], found = given.steps, {}
    for part in given.parts.split(","):
        report = given.folder / f"{part}.json"
        line = [sys.executable, __file__, "--part", part, "--report", str(report), "--folder", str(given.folder)]
        line += ["--device", given.device, "--dtype", given.dtype, *(["--tiny"] if given.tiny else [])]
        line += ["--model", given.model] if given.model else []
        try:
            subprocess.run([*line, "--limit", str(given.limit)], timeout=given.limit, check=False)
        except subprocess.TimeoutExpired:
            found[f"{part}, the rest"] = {"error": f"did not end within {given.limit} s"}
            print_line(f"{part}, the rest", found[f"{part}, the rest"])
        if report.is_file():
            found |= json.loads(report.read_text())
        result |= {"ratios": ratios(found), "figures": found}
        if given.out:
            given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(list(PARTS)[:-1]), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a part may take")
    parser.add_argument("--folder", type=Path, help="where the models are kept; default: a temporary one")
    parser.add_argument("--model", help="a pipeline directory; default: one of random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)  # measured in this process
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)  # overrides of a run in this process
    given = parser.parse_args()
    if given.run:
        return run_here(given.run, given.report)
    given.batch, given.steps, given.tuning_batch = (2, 2, 2) if given.tiny else (16, 25, 16)
    given.features_batch, given.features_side = (2, 64) if given.tiny else (32, 224)
    if given.part:
        return measure_part(given, given.part)
    with tempfile.TemporaryDirectory(prefix="florilegium-gpu-") as folder:
        given.folder = (given.folder or Path(folder)).resolve()
        given.folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(given.folder / "inductor"))
        measure(given)


if __name__ == "__main__":
    main()
