"""Distils guidance into LoRA adapters of a generator: one call of the network a step in the place of two.

They are for the setting `diffusion.distilled`.
Stage one of Meng et al. (arXiv 2210.03142). Classifier-free guidance w asks the decoder twice, with the text and
without: v = v_empty + w (v_text - v_empty). The student, the same decoder with adapters, learns to say v in one call.
As in the paper it learns a range of w, here by the scale of its adapters: (w - 1) / (W - 1), so that scale 0 is the
decoder itself, which is w = 1, and scale 1 is W (--guidance).

The paper makes its inputs noisy from pictures. Here they are the states of the teacher's own way from noise to picture,
which the student will meet, so no picture is needed: only prompts, of public rows. The teacher's answer that is the
target also takes its state one step further. Works on every Stable Diffusion 1.x, 2.x or XL directory (--model).

    python tools/distill_unet.py --threads 1     # the embedded generator; goes on from its last checkpoint
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from pretraining import DATA, read
from torch import Tensor, nn
from training_loop import arguments, device_of, halved, train

from florilegium.config.composition import compose
from florilegium.data.datasets import open_dataset
from florilegium.diffusion.distilled import FACTS
from florilegium.diffusion.load import backend
from florilegium.diffusion.networks import Network, Texts

SCALES = (1.0, 0.5, 1.0)  # of the groups of states: most of them at W, at which everything is drawn by default
STEPS = (6, 24)  # a way from noise to picture has so many steps, so the student meets every time
# The text's attention and the ways out of its block, and the convolutions: in a comparison of equal sizes, adapters on
# both learned faster than on attention alone.
TARGETS = (
    r".*(attn2\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.2|proj_out|resnets\.\d+\.(conv1|conv2|time_emb_proj)|conv_out)$"
)


def guided(plain: Tensor, empty: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: the decoder's word without text, plus w times what the text changes."""
    return empty + guidance * (plain - empty)


def advanced(state: Tensor, said: Tensor, now_B: Tensor, next_B: Tensor, kind: str) -> Tensor:
    """A DDIM step (arXiv 2010.02502, eq 12, without noise) of states [B, ...]; `now_B` and `next_B` are the shares of
    signal a_t, 1 for a finished picture. `kind`: what the decoder says, the noise or the velocity."""
    now, later = (x.to(state).view(-1, *[1] * (state.dim() - 1)) for x in (now_B, next_B))
    if kind == "v_prediction":
        clean = now.sqrt() * state - (1 - now).sqrt() * said
        noise = now.sqrt() * said + (1 - now).sqrt() * state
    else:
        clean, noise = (state - (1 - now).sqrt() * said) / now.sqrt(), said
    return later.sqrt() * clean + (1 - later).sqrt() * noise


@dataclass
class Batch:
    """What the student gets, states [B, ...] at times [B] under texts, and what it is to say."""

    states: Tensor
    times: Tensor
    texts: Texts
    target: Tensor


class Ways:
    """B states between noise and picture, each at its own step of a way of its own length, all at one guidance."""

    def __init__(self, teacher: Network, texts: Texts, config: Any, guidance: float, count: int) -> None:
        self.teacher, self.texts, self.guidance = teacher, texts, guidance
        self.kind, self.signal = config.prediction_type, DDIMScheduler.from_config(config).alphas_cumprod
        if self.kind not in ("epsilon", "v_prediction"):
            raise SystemExit(f"a decoder that says {self.kind} is not distilled here")
        decoder = teacher.decoder
        self.shape = (decoder.config.in_channels, *2 * [decoder.config.sample_size])
        self.states = torch.zeros(count, *self.shape)
        self.prompts, self.done, self.length = (torch.zeros(count, dtype=torch.long) for _ in range(3))
        self._begin(torch.arange(count))
        self._spread()

    def _begin(self, rows: Tensor) -> None:
        """New ways from noise under new prompts; row 0 of the texts is the empty one."""
        self.states[rows] = torch.randn(len(rows), *self.shape)
        self.prompts[rows] = torch.randint(1, len(self.texts), (len(rows),))
        self.length[rows] = torch.randint(STEPS[0], STEPS[1] + 1, (len(rows),))
        self.done[rows] = 0

    def _spread(self) -> None:
        """Bring each state to a step of its own, so that a batch has all times."""
        aim = (torch.rand(len(self.done)) * self.length).long()
        while len(rows := (self.done < aim).nonzero().flatten()):
            self._go(rows, self.said(rows))

    def times(self, done: Tensor, rows: Tensor) -> Tensor:
        """The time after so many steps, from the last of the schedule down; -1: finished."""
        whole = len(self.signal)
        return (whole - (done * whole / self.length[rows]).round().long() - 1).clamp(-1)

    @torch.no_grad()
    def said(self, rows: Tensor) -> Tensor:
        """The guided answer of the teacher for these states, by two calls in one batch."""
        device = self.teacher.decoder.device
        states, times = self.states[rows].to(device), self.times(self.done[rows], rows).to(device)
        both = self.texts[torch.cat([self.prompts[rows], torch.zeros_like(rows)]).to(self.texts.tokens.device)]
        plain, empty = self.teacher(states.repeat(2, 1, 1, 1), times.repeat(2), both).chunk(2)
        return guided(plain, empty, self.guidance)

    def _go(self, rows: Tensor, said: Tensor) -> None:
        signal = torch.cat([self.signal, torch.ones(1)])  # index -1: a finished picture is all signal
        now, later = (signal[self.times(self.done[rows] + n, rows)] for n in (0, 1))
        self.states[rows] = advanced(self.states[rows], said.cpu(), now, later, self.kind)
        self.done[rows] += 1

    def batch(self) -> Batch:
        """All states with the teacher's answers; afterwards each is one step further, or a new one."""
        rows = torch.arange(len(self.done))
        found = Batch(
            self.states.clone(), self.times(self.done, rows), self.texts[self.prompts], target := self.said(rows)
        )
        self._go(rows, target)
        if len(ended := (self.done >= self.length).nonzero().flatten()):
            self._begin(ended)
        return found


def set_scale(student: nn.Module, scale: float) -> None:
    """How strongly the adapters act."""
    for module in student.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] = scale


def prompts(data: Path) -> list[str]:
    """The empty text first, then as many prompts of classes as of what the public training rows show."""
    opened = [open_dataset(compose([f"data={name}"]).data).classes for name in ("emoji", "fashion", "lexicon")]
    classes = [found.prompt(c) for found in opened for c in range(len(found))]
    public = {
        text
        for name in ("emoji", "lexicon")
        for text, part in zip(*(read(data / name / "train.parquet")[x] for x in ("text", "part")), strict=True)
        if part == "public"
    }
    shown = [f"A picture of {text}." for text in sorted(public)]
    return ["", *classes * round(len(shown) / len(classes)), *shown]


def distilled_loss(student: Network, batch: Batch, scale: float) -> Tensor:
    """Mean squared difference from the guided answer."""
    set_scale(student.decoder, scale)
    device = student.decoder.device
    said = student(batch.states.to(device), batch.times.to(device), batch.texts)
    return F.mse_loss(said, batch.target)


def students(pipe: Any, view: Any, rank: int, targets: str) -> nn.Module:
    """The decoder of `pipe` with adapters of `rank` on the layers that match."""
    decoder = getattr(pipe, view.network.part)
    layers = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    chosen = [name for name in layers if re.fullmatch(targets, name)]
    decoder.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=chosen))
    return decoder


def main() -> None:
    parser = arguments(__doc__, steps=2000, batch=32, lr=5e-3)
    parser.add_argument("--model", type=Path, help="a pipeline directory; default: mini-sd in --out")
    parser.add_argument("--name", default="mini-sd-guided", help="of the folder in --out, and of the checkpoint")
    parser.add_argument("--guidance", type=float, default=3.0, help="W, at which the adapters act fully")
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--targets", default=TARGETS, help="names of the layers that get adapters")
    args = parser.parse_args()
    device = device_of(args)
    model = str(args.model or args.out / "mini-sd")
    view = backend(model).loaded_view()
    teacher, pipe = (view.whole(model, str(device), torch.float32) for _ in range(2))
    student = students(pipe, view, args.rank, args.targets)
    with torch.no_grad():
        distinct = list(dict.fromkeys(said := prompts(DATA)))
        parts = [view.texts(teacher, distinct[i : i + 256]) for i in range(0, len(distinct), 256)]
        row = {text: u for u, text in enumerate(distinct)}
        texts = Texts.joined(parts)[torch.tensor([row[text] for text in said])]
    of_teacher, of_student = view.network(getattr(teacher, view.network.part)), view.network(student)
    guidances = [1 + scale * (args.guidance - 1) for scale in SCALES]
    groups = [Ways(of_teacher, texts, teacher.scheduler.config, w, args.batch) for w in guidances]
    step = iter(range(args.steps))

    def loss_of(rng: np.random.Generator) -> Tensor:
        n = next(step) % len(groups)
        return distilled_loss(of_student, groups[n].batch(), SCALES[n])

    def save(average: nn.Module, facts: dict) -> None:
        folder = args.out / args.name
        layers = halved(get_peft_model_state_dict(average))
        view.pipeline.save_lora_weights(folder, **{f"{view.network.part}_lora_layers": layers})
        partial = folder / f".{FACTS}.partial"
        partial.write_text(json.dumps({"guidance": args.guidance, "rank": args.rank, **facts}, indent=1) + "\n")
        os.replace(partial, folder / FACTS)

    train(args.name, student, loss_of, save, args, decay=0.99)


if __name__ == "__main__":
    main()
