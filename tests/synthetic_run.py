"""A run directory made by hand: real numbers in every file, so that what is read from it can be worked out on paper."""

import numpy as np

from florilegium.report import page
from florilegium.runs.writer import Run

CLASSES = ["bird", "boat", "heart"]


def conf(seed: int = 0, **changes) -> dict:
    """Settings of a small federation; `changes` replace top-level nodes."""
    return {
        "method": {"name": "fedmmkt", "variant": "representation", "server": {"samples": 6}, "client": {}},
        "data": {"name": "emoji", "image_size": 8},
        "rounds": 2,
        "seed": seed,
        "label": None,
        "resume": False,
        "clients": {
            "mix": [
                {"modality": "image", "model": "resnet"},
                {"modality": "image", "model": "vit"},
                {"modality": "text", "model": "bert"},
                {"modality": "text", "model": "distilbert"},
            ],
            "partition": {"name": "dirichlet", "alpha": 0.5},
            "device": "cpu",
        },
        "evaluation": {"every": 1, "images_per_class": 4},
        "references": {
            "standalone": {"name": "standalone"},
            "self_label": {"name": "selftuned"},
            "centralised": {"name": "centralised"},
        },
    } | changes


def images(shift: int = 0, n: int = 4, side: int = 8) -> np.ndarray:
    """uint8 [N,3,H,W] with something to see."""
    count = n * len(CLASSES)
    axis = np.arange(side) * 255 // (side - 1)
    picture = np.stack([np.tile(axis, (side, 1)), np.tile(axis[:, None], (1, side)), np.full((side, side), shift)])
    return np.stack([np.roll(picture, k, axis=2) for k in range(count)]).astype(np.uint8)


def captions(n: int = 4) -> list[str]:
    return [c for c in CLASSES for _ in range(n)]


def figures(image: float, text: float, t2i: float | None = None, **more) -> dict[str, float]:
    told = {
        "client/accuracy/image": image,
        "client/accuracy/text": text,
        "client/validation/image": image,
        "client/validation/text": text,
        **{f"client/accuracy/{k}": image if k < 2 else text for k in range(4)},
    }
    return told | ({} if t2i is None else generated(t2i)) | more


def generated(t2i: float) -> dict[str, float]:
    return {"t2i/accuracy": t2i, "t2i/clip_score": 0.2 + t2i / 10, "t2i/diversity": 0.4 - t2i / 2}


def entry(arm: str, round: int, phase: str, client: int, down: int, up: int, fault: str | None = None) -> dict:
    return {
        "arm": arm,
        "round": round,
        "step": 1,
        "phase": phase,
        "client": client,
        "modality": "image" if client < 2 else "text",
        "down": down,
        "up": up,
        "seconds": 0.1,
        "fault": fault,
    }


def build(out, seed=0, lift=0.0, rounds=2, clients=True, generator=True, clients_on="cpu", **changes):
    """Write a run; `lift` is added to the method's accuracies of its last round. Gives the directory."""
    settings = conf(seed, **changes)
    settings["clients"]["device"] = clients_on
    if not clients:  # no arm but the run's own is recorded
        settings["references"] = {}
    run = Run.open(out, settings)
    run.partition(
        {
            "clients": [
                {
                    "client": k,
                    "modality": client["modality"],
                    "model": client["model"],
                    "rows": list(range(10 * k, 10 * k + 5 + k)),
                    "classes": {"bird": 5, "boat": k, "heart": 0},
                }
                for k, client in enumerate(settings["clients"]["mix"])
            ]
        }
    )
    for r in range(rounds + 1):
        rise = 0.1 * r + (lift if r == 2 else 0.0)
        t2i = 0.2 + rise if generator else None
        metrics = figures(0.3 + rise, 0.5 + rise, t2i) if clients else {"t2i/accuracy": t2i, "t2i/clip_score": 0.25}
        if r:
            metrics |= {
                "labels/kept": 0.9,
                "labels/accuracy": 0.6,
                "labels/agree_with_prompt": 0.7,
                "bytes/up_per_client": 2.0**20,
                "bytes/down_per_client": 3 * 2.0**20,
                "bytes/formula_up": 2.0**20,
                "bytes/formula_down": 2.5 * 2**20,
                "loss": float("nan"),
            }
            run.votes("method", r, np.array([[3, 1, 0], [0, 4, 0], [1, 1, 2]]), CLASSES)
            run.ledger([entry("method", r, "represent", k, 1000 * (k + 1), 500) for k in range(4)])
        run.record("method", r, 10.0 + r, metrics)
        if generator:
            run.grid("method", r, images(80 * r), captions())
    run.ledger([entry("method", 1, "distill", 3, 10, 0, "raised: <b>no disk</b>")])
    if rounds == 2 and clients:
        for r in range(3):
            run.record("standalone", r, 1.0, figures(0.3, 0.5))
        for arm, t2i in (("self_label", 0.25), ("centralised", 0.6)):
            run.record(arm, 2, 5.0, {"t2i/accuracy": t2i, "t2i/clip_score": 0.26} if generator else {})
            if generator:
                run.grid(arm, 2, images(200), captions())
    run.finish(protocol={"judge_accuracy": 0.8, "classes": 3})
    page.write(run.out)
    return run.out
