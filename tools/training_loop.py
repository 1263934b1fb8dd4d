"""The loop under every mini model: AdamW, warm-up and cosine, moving average of weights, resumable checkpoints."""

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import nn

CHECKPOINT_SECONDS = 60


def arguments(description: str, steps: int, batch: int, lr: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for torch's own choice")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast; 3 times faster where the CPU knows it")
    parser.add_argument("--cache", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--out", type=Path, default=Path("assets/models"))
    parser.add_argument("--export-every", type=float, default=600, help="seconds between exports while training")
    return parser


def device_of(args: argparse.Namespace) -> torch.device:
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(found if args.device == "auto" else args.device)


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """fp16 keeps the repository small; every loader casts it back to its own precision."""
    return {k: v.half().contiguous() if v.is_floating_point() else v.contiguous() for k, v in state.items()}


class Average:
    """Exponential moving average of a model's state; buffers are copied."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        new = model.state_dict()
        for name, value in self.model.state_dict().items():
            if value.is_floating_point() and "running" not in name:
                value.lerp_(new[name], 1 - decay)
            else:
                value.copy_(new[name])


def save_checkpoint(
    path: Path, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer, step: int, seconds: float
):
    tensors = {f"{name}.{k}": v.contiguous().clone() for name, m in parts.items() for k, v in m.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v).contiguous().clone() for k, v in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"step": str(step), "seconds": str(seconds)})
    os.replace(partial, path)


def load_checkpoint(path: Path, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        told = file.metadata()
    tensors = load_file(path)
    for name, module in parts.items():
        cut = len(name) + 1
        module.load_state_dict({k[cut:]: v for k, v in tensors.items() if k.startswith(f"{name}.")})
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, field = key.split(".")
            state.setdefault(int(i), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(told["step"]), float(told["seconds"])


def progress_bar() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *Progress.get_default_columns()[1:3])
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))


def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[[np.random.Generator], torch.Tensor],
    export: Callable[[nn.Module, dict], None],
    args: argparse.Namespace,
    decay: float = 0.999,
) -> None:
    """Minimises loss_of(rng of the step); exports the average now and then, and at the end."""
    average, device = Average(model, decay), next(model.parameters()).device.type
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=args.lr, weight_decay=0.01, betas=(0.9, 0.99))
    checkpoint, parts = args.cache / "checkpoints" / f"{name}.safetensors", {"model": model, "average": average.model}
    first, spent = load_checkpoint(checkpoint, parts, optimizer) if checkpoint.exists() else (0, 0.0)
    begun = saved = exported = shown = time.monotonic()
    with progress_bar() as progress:
        task = progress.add_task(name, total=args.steps, completed=first, loss="")
        for step in range(first, args.steps):
            warm, rest = min(1, (step + 1) / 100), 0.5 * (1 + np.cos(np.pi * step / args.steps))
            optimizer.param_groups[0]["lr"] = args.lr * warm * (0.02 + 0.98 * rest)
            torch.manual_seed(args.seed * 1_000_003 + step)  # a resumed step draws what it would have drawn
            with torch.autocast(device, torch.bfloat16, enabled=args.bf16):
                loss = loss_of(np.random.default_rng((args.seed, step)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            average.update(model, step)
            now, done = time.monotonic(), step + 1
            progress.update(task, completed=done, loss=f"{loss.item():.4f}")
            if now - shown > 20 and not progress.console.is_terminal:
                print(f"{name} {done}/{args.steps} loss {loss.item():.4f} {spent + now - begun:.0f}s", flush=True)
                shown = now
            facts = {"steps": done, "seconds": round(spent + now - begun), "batch": args.batch}
            if now - saved > CHECKPOINT_SECONDS or done == args.steps:
                save_checkpoint(checkpoint, parts, optimizer, done, spent + now - begun)
                saved = now
            if now - exported > args.export_every or done == args.steps:
                export(average.model, facts)
                exported = now
    if first >= args.steps:
        export(average.model, {"steps": first, "seconds": round(spent), "batch": args.batch})


def record(cache: Path, name: str, facts: dict) -> None:
    """Keeps steps and seconds beside the checkpoints, for the model card."""
    path = cache / "checkpoints" / f"{name}.json"
    path.write_text(json.dumps(facts) + "\n")
