"""Fine-tuning the decoder of a T2I model on text and fused representations (arXiv 2510.12254, eqs 11-12, Annex B).

Only the decoder (U-Net) and the projection P train; text encoder and autoencoder are frozen, so latents and text
embeddings arrive here computed. Axes: N samples, B batch, T tokens, W token width, D representation width, U texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from florilegium import seeds
from florilegium.config.diffusion import TuneSettings
from florilegium.diffusion.glide.variational import variational_term


@dataclass(frozen=True)
class TuneTexts:
    """Two texts a sample: the label's prompt, and the text with the caption in it."""

    label: Sequence[str]
    full: Sequence[str]


@dataclass(frozen=True)
class TuneData:
    """What the frozen parts made of the samples; `text_UTW` holds each distinct text once, row 0 is the empty one."""

    latents_N: Tensor  # [N, channels, h, w]
    text_UTW: Tensor
    label_N: Tensor  # row of the label's prompt
    full_N: Tensor  # row of the text with the caption
    representations_ND: Tensor | None


@dataclass(frozen=True)
class Draws:
    """Everything random in one step, on the CPU, named by seed and step."""

    omit_B: Tensor  # b of eq 12
    drop_B: Tensor  # text dropped, and the representation with it
    label_B: Tensor  # label only
    time_B: Tensor
    noise_B: Tensor


def drawn_order(label_N: Tensor, balance: float, random: torch.Generator) -> Tensor:
    """A pass over N samples: each once, or N drawn with a chance of (how often its label occurs) ** -balance.

    Clients agree on the classes they know, so kept samples are skewed; a class that is seldom tuned is forgotten.
    """
    if not balance:
        return torch.randperm(len(label_N), generator=random)
    _, which_N, count = label_N.unique(return_inverse=True, return_counts=True)
    return torch.multinomial(count[which_N].double() ** -balance, len(label_N), replacement=True, generator=random)


def learning_rate(settings: TuneSettings, done: float) -> float:
    """Cosine annealing to 0 over the whole run; `done` is the finished share of it."""
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def adapted_modules(decoder: nn.Module) -> list[str]:
    """Names of the layers that LoRA adapts: attention, and where the decoder has them the ways by which a text enters
    (GLIDE's added keys and values, and the pooled state's projection)."""
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    there = {name.rpartition(".")[2] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    pooled = ["class_embedding"] if isinstance(getattr(decoder, "class_embedding", None), nn.Linear) else []
    return targets + [name for name in ("add_k_proj", "add_v_proj") if name in there] + pooled


class Tuner:
    """The trainable parts of a T2I model: decoder (or its adapters), projection, Adam, moving average, step.

    `noise` is a training scheduler with diffusers' interface: add_noise, get_velocity, config.
    """

    def __init__(self, decoder: nn.Module, noise: Any, autocast: Callable[[], Any] = nullcontext) -> None:
        self.decoder, self.noise, self.autocast = decoder, noise, autocast
        self.projection: nn.Linear | None = None
        self.rank: int | None = None
        self.merge: str | None = None
        self.step = 0
        self.trained: dict[str, nn.Parameter] = {}
        self.average: dict[str, Tensor] = {}
        self.optimizer: torch.optim.Adam | None = None
        decoder.requires_grad_(False)

    def prepare(self, rank: int | None, merge: str, width: int | None, seed: int) -> None:
        """Make decoder, and projection if there are representations of `width`, trainable; once each."""
        if self.optimizer is None:
            self.rank, self.merge = rank, merge
            self._open_decoder(seed)
        if (rank, merge) != (self.rank, self.merge):
            raise ValueError(
                f"the decoder is tuned with lora={self.rank}, merge={self.merge}; "
                f"lora={rank}, merge={merge} cannot go on from it"
            )
        if width and self.projection is None:
            self._open_projection(width, seed)
        if width and self.projection is not None and self.projection.in_features != width:
            raise ValueError(f"representations have width {width}, the projection takes {self.projection.in_features}")

    def _open_decoder(self, seed: int) -> None:
        if self.rank:
            from peft import LoraConfig

            with seeds.scoped(seed, "lora"):
                adapted: Any = self.decoder
                adapted.add_adapter(
                    LoraConfig(
                        r=self.rank,
                        lora_alpha=self.rank,
                        init_lora_weights="gaussian",
                        target_modules=adapted_modules(self.decoder),
                    )
                )
        else:
            self.decoder.requires_grad_(True)
        parameters = {f"decoder.{k}": v for k, v in self.decoder.named_parameters() if v.requires_grad}
        self.optimizer = torch.optim.Adam(parameters.values(), lr=0.0)
        self._follow(parameters)

    def _open_projection(self, width: int, seed: int) -> None:
        """P of eq 11. Zero at first where it is added (the start is the original model), random where it is a token."""
        decoder: Any = self.decoder
        time = self.merge == "time"
        out = decoder.time_embedding.linear_2.out_features if time else decoder.config.cross_attention_dim
        with seeds.scoped(seed, "projection"):
            self.projection = nn.Linear(width, out)
        if self.merge != "token":
            nn.init.zeros_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)
        self.projection.to(next(self.decoder.parameters()).device)
        parameters = {f"projection.{k}": v for k, v in self.projection.named_parameters()}
        assert self.optimizer is not None
        self.optimizer.add_param_group({"params": list(parameters.values())})
        self._follow(parameters)

    def _follow(self, parameters: dict[str, nn.Parameter]) -> None:
        self.trained |= parameters
        self.average |= {name: p.detach().clone() for name, p in parameters.items()}

    # -- training (eqs 11-12) ----------------------------------------------------------------------------------------

    def fit(
        self,
        data: TuneData,
        settings: TuneSettings,
        rounds: tuple[int, int],
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """Train on the data of round `rounds[0]` of `rounds[1]`. FloatingPointError when the loss is not finite."""
        reps = data.representations_ND
        self.prepare(settings.lora, settings.merge, None if reps is None else reps.shape[-1], seed)
        orders = (
            drawn_order(data.label_N, settings.balance, seeds.generator(seed, "order", epoch))
            for epoch in range(settings.epochs)
        )
        batches = [rows for order in orders for rows in order.split(settings.batch)]
        losses, omitted, seen = 0.0, 0.0, settings.epochs * len(data.latents_N)
        self.decoder.train()
        for i, rows in enumerate(batches):
            lr = learning_rate(settings, (max(rounds[0] - 1, 0) + i / len(batches)) / max(rounds[1], 1))
            with seeds.scoped(seed, "dropout", self.step):  # of a decoder that has it: GLIDE's
                loss, hidden = self._step(data, rows, settings, lr, seed)
            losses, omitted = losses + loss * len(rows), omitted + hidden
            if progress:
                progress(i + 1, len(batches))
        self.decoder.eval()
        return {"t2i/loss": losses / seen, "t2i/omitted": omitted / seen, "t2i/steps": float(self.step)}

    def _draw(self, data: TuneData, rows: Tensor, settings: TuneSettings, seed: int) -> Draws:
        random = seeds.generator(seed, "step", self.step)
        size = len(rows)
        omit, drop, label = (
            torch.rand(size, generator=random) < p for p in (settings.omission, settings.text_drop, settings.label_only)
        )
        time = torch.randint(self.noise.config.num_train_timesteps, (size,), generator=random)
        noise = torch.randn(size, *data.latents_N.shape[1:], generator=random)
        if settings.text != "label+caption":
            label = torch.full_like(label, settings.text == "label")
        # a sample that no client's representation was fused for has a row of zeros: nothing to show
        shown = False if data.representations_ND is None else data.representations_ND[rows].any(1).cpu()
        omit = omit | ~torch.as_tensor(shown)
        return Draws(omit, drop, label, time, noise)

    def _step(self, data: TuneData, rows: Tensor, settings: TuneSettings, lr: float, seed: int) -> tuple[float, float]:
        drawn, device = self._draw(data, rows, settings, seed), data.latents_N.device
        latents, noise, time = data.latents_N[rows], drawn.noise_B.to(device), drawn.time_B.to(device)
        text = torch.where(drawn.label_B, data.label_N[rows], data.full_N[rows]).masked_fill(drawn.drop_B, 0)
        extra = None
        if data.representations_ND is not None:
            assert self.projection is not None
            extra = self.projection(data.representations_ND[rows].to(device))
        noisy = self.noise.add_noise(latents, noise, time).contiguous(memory_format=torch.channels_last)
        with self.autocast():
            said = predict(
                self.decoder,
                noisy,
                time,
                data.text_UTW[text],
                extra,
                (drawn.omit_B | drawn.drop_B).to(device),
                settings.merge,
            )
        said, channels = said.float(), latents.shape[1]
        loss = mse_loss(said[:, :channels], self._target(latents, noise, time))  # eq 12
        if settings.variational and said.shape[1] == 2 * channels:
            loss = loss + variational_term(said, latents, noisy, time, self.noise.config).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the T2I loss is {loss.item()} at step {self.step}; lower the learning rate")
        self._descend(loss, settings, lr)
        return loss.item(), float(drawn.omit_B.sum())

    def _target(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        kind = self.noise.config.prediction_type
        velocity = kind == "v_prediction"
        return self.noise.get_velocity(latents, noise, time) if velocity else latents if kind == "sample" else noise

    def _descend(self, loss: Tensor, settings: TuneSettings, lr: float) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), settings.clip)
        self.optimizer.step()
        # a plain 0.999 would still hold 80 % of the start after 200 steps, so the average begins short and lengthens
        decay = min(settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.trained.items():
                self.average[name].lerp_(parameter, 1 - decay)
        self.step += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the decoder holds the moving average, which synthesizes."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.trained.items():
            parameter.data, self.average[name] = self.average[name], parameter.data

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Copies of everything that a further step depends on."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.trained.items():
            assert self.optimizer is not None
            parts = {"weight": parameter.detach(), "average": self.average[name], **self.optimizer.state[parameter]}
            tensors |= {f"{name}/{part}": value.cpu().clone() for part, value in parts.items()}
        return tensors, {"step": self.step, "lora": self.rank, "merge": self.merge}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Continue from `state`, on a tuner that has not trained. ValueError names a tensor that does not fit."""
        if not tensors:
            return
        width = tensors["projection.weight/weight"].shape[1] if "projection.weight/weight" in tensors else None
        self.prepare(meta["lora"], meta["merge"], width, seed=0)
        self.step = int(meta["step"])
        for name, parameter in self.trained.items():
            fitting(tensors, f"{name}/weight", parameter.data)
            fitting(tensors, f"{name}/average", self.average[name])
            if f"{name}/step" in tensors:
                moments = {part: torch.zeros_like(parameter.data) for part in ("exp_avg", "exp_avg_sq")}
                for part, value in moments.items():
                    fitting(tensors, f"{name}/{part}", value)
                assert self.optimizer is not None
                self.optimizer.state[parameter] = {"step": tensors[f"{name}/step"].clone(), **moments}


def fitting(tensors: dict[str, Tensor], name: str, target: Tensor) -> None:
    """Copy a named tensor into one of the same shape, keeping the target's memory layout."""
    if name not in tensors or tensors[name].shape != target.shape:
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        raise ValueError(f"the checkpoint does not fit this model: {name} is {found}, needed {tuple(target.shape)}")
    target.copy_(tensors[name])


def predict(
    decoder: nn.Module,
    noisy_B: Tensor,
    time_B: Tensor,
    text_BTW: Tensor,
    extra_BW: Tensor | None,
    omit_B: Tensor,
    merge: str,
) -> Tensor:
    """Dec(x_t, t, h) of eqs 11-12: how a representation joins the text in the decoder, and its omission.

     A row with b = 1 gives the text-only decoder's output, bit for bit.

    `token`: a row without representation must not meet the extra key at all. Rows are split into two calls, because a
    masked key, though its weight is exactly zero, changes the shape of the products and so their last bits.
    `add` and `time`: what is added to such a row is exactly zero.
    """
    if extra_BW is None or bool(omit_B.all()):
        return decoder(noisy_B, time_B, text_BTW).sample
    if merge == "token":
        with_B, without_B = (~omit_B).nonzero().flatten(), omit_B.nonzero().flatten()
        longer_BTW = torch.cat([text_BTW[with_B], extra_BW[with_B, None]], 1)
        parts = [decoder(noisy_B[with_B], time_B[with_B], longer_BTW).sample]
        if len(without_B):
            parts.append(decoder(noisy_B[without_B], time_B[without_B], text_BTW[without_B]).sample)
        return torch.cat(parts)[torch.argsort(torch.cat([with_B, without_B]))]
    shown_BW = extra_BW.masked_fill(omit_B[:, None], 0)
    if merge == "add":
        return decoder(noisy_B, time_B, text_BTW + shown_BW[:, None]).sample
    embedding = decoder.get_submodule("time_embedding")
    hook = embedding.register_forward_hook(lambda module, inputs, output: output + shown_BW)
    try:
        return decoder(noisy_B, time_B, text_BTW).sample
    finally:
        hook.remove()
