"""Peak memory of a client with many images: a generated folder, prepared, opened, trained on and judged, in a process.

    python bench/large_data.py                         25,000 JPEG files of 224 pixels (minutes, 4 GB of disk)
    python bench/large_data.py --images 2000 --side 96
    python bench/large_data.py --workers 4             with as many processes too, and how much faster
    python bench/large_data.py --public 5000           also a client that encodes and learns so many public pairs

The peak is of everything but the model's own needs: the model is a ResNet of a few thousand weights. Also printed:
bytes that the pixels of training rows would be as uint8 and as float32.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

CLASSES = ("disc", "ring")


def write_folder(place: Path, count: int, side: int) -> None:
    """Class folders of JPEG files of noise with a coloured half, one in two a class."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for name in CLASSES:
        (place / name).mkdir(parents=True, exist_ok=True)
    for n in range(count):
        small = random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        small[: side // 16, :, n % 2] = 255
        Image.fromarray(small).resize((side, side)).save(place / CLASSES[n % 2] / f"{n}.jpg", quality=85)


def settings(folder: Path, out: Path, side: int, workers: int = 0, more: Sequence[str] = ("method=fedavg",)):
    from florilegium.config import composition

    return composition.compose(
        [
            *more,
            "data=folder",
            f"data.path={folder}",
            f"data.image_size={side}",
            f"data.workers={workers}",
            f"out={out}",
            f"data.prepared={out / 'own-data'}",
            "architectures@clients.architectures=toy",
            "clients.mix=[{modality:image,model:resnet}]",
        ]
    )


def prepare(folder: Path, out: Path, side: int, workers: int = 0) -> None:
    from florilegium.data.own.preparation import prepare

    prepare(settings(folder, out, side, workers))


def one_client(folder: Path, out: Path, side: int) -> None:
    """Open the rows, one epoch, both held-out splits."""
    from client_app.evaluation import evaluate
    from client_app.opening import open_client
    from florilegium.protocol.codec import Header

    conf = settings(folder, out, side)
    client = open_client(conf, {"partition-id": 0, "num-partitions": 1}, Header(arm="method", round=1, step=0))
    for batch in client.private_batches(64, 0, "bench"):
        client.model(batch.inputs[:4])
    evaluate(client)


def write_public(place: Path, folder: Path, count: int, side: int) -> None:
    """So many pairs in the layout of Flickr30k: the folder's kind of pictures, each with a caption."""
    write_folder(folder, count, side)
    images = place / "flickr30k-images"
    images.mkdir(parents=True)
    lines = []
    for n in range(count):
        (folder / CLASSES[n % 2] / f"{n}.jpg").rename(images / f"{n}.jpg")
        lines.append(f"{n}.jpg#0\ta {CLASSES[n % 2]} number {n}\n")
    (place / "results_20130124.token").write_text("".join(lines))


def public_client(folder: Path, out: Path, side: int, public: Path) -> None:
    """Open the public pairs, encode all of them, and learn from representations of all of them for one pass."""
    import torch

    from client_app.blocks.representing import answer, inputs_of, learn
    from client_app.opening import open_client
    from florilegium.protocol.codec import Header
    from florilegium.protocol.payloads import PublicSet

    conf = settings(folder, out, side, more=["method=fedmekt", "references=none", f"data.public.path={public}"])
    client = open_client(conf, {"partition-id": 0, "num-partitions": 1}, Header(arm="method", round=1, step=0))
    pairs = client.public_pairs
    asked = PublicSet(pairs.order, pairs.ids)
    target_ND = answer(client, asked).image

    def terms(rows, codes):
        return {"transfer": (codes["image"][0] - target_ND[rows]).square().mean()}

    torch.manual_seed(0)
    learn(client, conf.method.client, inputs_of(client, asked), terms, 1)


def measured(work, *given) -> dict[str, float]:
    """Seconds and peak GiB of a fresh process."""

    def run(pipe) -> None:
        before = time.perf_counter()
        work(*given)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        pipe.send({"seconds": round(time.perf_counter() - before, 1), "peak_gib": round(peak, 2)})

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=run, args=(there,))
    process.start()
    there.close()
    found = here.recv() if here.poll(None) else {}
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=25_000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--public", type=int, default=0)
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="florilegium-large-"))
    try:
        folder, out = place / "photos", place / "run"
        write_folder(folder, given.images, given.side)
        pixels = given.images * 3 * given.side**2 / 2**30
        found = {
            "images": given.images,
            "side": given.side,
            "pixels_gib": {"uint8": round(pixels, 2), "float32": round(4 * pixels, 2)},
            "prepare": measured(prepare, folder, out, given.side),
            "client": measured(one_client, folder, out, given.side),
        }
        if given.workers:
            shared = measured(prepare, folder, place / "shared", given.side, given.workers)
            shared["times_as_fast"] = round(found["prepare"]["seconds"] / shared["seconds"], 2)
            found[f"prepare, {given.workers} processes"] = shared
        if given.public:
            write_public(place / "public", place / "more", given.public, given.side)
            found["public pairs"] = given.public
            found["client with public set"] = measured(public_client, folder, out, given.side, place / "public")
        print(json.dumps(found, indent=1))
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
