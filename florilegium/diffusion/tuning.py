"""Fine-tuning the decoder of a T2I model on text and fused representations (arXiv 2510.12254, eqs 11-12, Annex B).

Only the decoder (U-Net) and the projection P train; text encoder and autoencoder are frozen, so latents and text
embeddings arrive here computed. What a decoder holds of its text encoder (GLIDE) is frozen, too.
Axes: N samples, B batch, T tokens, W token width, D representation width, U texts.

The frozen weights stay in the dtype that the decoder came in. Trained weights, moments and average are float32; a whole
decoder of another dtype trains under autocast.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from florilegium import seeds
from florilegium.config.diffusion import TuneSettings
from florilegium.diffusion import inserted
from florilegium.diffusion.glide.variational import variational_term
from florilegium.diffusion.networks import Network, Texts


@dataclass(frozen=True)
class TuneTexts:
    """Two texts a sample: the label's prompt, and the text with the caption in it."""

    label: Sequence[str]
    full: Sequence[str]

    @classmethod
    def of(cls, prompts: Sequence[str], captions: Sequence[str], text: str) -> TuneTexts:
        """With `text` (of TuneSettings) "caption" a caption stands alone, otherwise behind its prompt."""
        if text == "caption":
            return cls(prompts, captions)
        return cls(prompts, [f"{prompt} {caption}" for prompt, caption in zip(prompts, captions, strict=True)])


@dataclass(frozen=True)
class TuneData:
    """What the frozen parts made of the samples; `texts_U` holds each distinct text once, row 0 is the empty one."""

    latents_N: Tensor  # [N, channels, h, w]
    texts_U: Texts
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

    def of(self, rows: slice) -> Draws:
        """Those of some rows of the batch."""
        return Draws(*(getattr(self, f.name)[rows] for f in fields(self)))


class Share:
    """What this process does of each step: here all of it. Processes on several GPUs have another one
    (tuning_processes.py)."""

    rank = 0

    def prepared(self, module: nn.Module) -> nn.Module:
        """The module that is called once in each step."""
        return module

    def rows(self, count: int) -> tuple[slice, float]:
        """The rows of a batch of `count` that this process computes, and the weight of their mean loss."""
        return slice(None), 1.0

    def backward(self, loss: Tensor) -> None:
        """Give every trained weight the gradient of the whole batch."""
        loss.backward()

    def whole(self, loss: Tensor) -> float:
        """The loss of the whole batch, of this process's weighted one."""
        return loss.item()


class Denoise(nn.Module):
    """Projection and decoder as one module, so that processes that share a step have one thing to wrap."""

    def __init__(self, network: Network, projection: nn.Linear | None, merge: str, mixed: Callable[[], Any]) -> None:
        super().__init__()
        self.network, self.merge, self.mixed = network, merge, mixed
        self.decoder, self.projection = network.decoder, projection

    def forward(
        self, noisy_B: Tensor, time_B: Tensor, texts_B: Texts, representations_BD: Tensor | None, omit_B: Tensor
    ) -> Tensor:
        """What the decoder says, float32 [B, channels, h, w]."""
        extra = None
        if representations_BD is not None:
            assert self.projection is not None
            extra = self.projection(representations_BD)
        with self.mixed():
            return predict(self.network, noisy_B, time_B, texts_B, extra, omit_B, self.merge).float()


def drawn_order(label_N: Tensor, balance: float, random: torch.Generator) -> Tensor:
    """A pass over N samples: each once, or N drawn with a chance of (how often its label occurs) ** -balance.

    Clients agree on the classes they know, so kept samples are skewed; a class that is seldom tuned is forgotten.
    """
    if not balance:
        return torch.randperm(len(label_N), generator=random)
    _, which_N, count = label_N.unique(return_inverse=True, return_counts=True)
    return torch.multinomial(count[which_N].double() ** -balance, len(label_N), replacement=True, generator=random)


def drawn_batches(label_N: Tensor, settings: TuneSettings, seed: int) -> Iterator[Tensor]:
    """The rows of each step: `settings.epochs` passes, or as many passes as give `settings.steps` steps."""
    steps = 0
    for epoch in itertools.count() if settings.steps else range(settings.epochs):
        for rows in drawn_order(label_N, settings.balance, seeds.generator(seed, "order", epoch)).split(settings.batch):
            yield rows
            steps += 1
            if steps == settings.steps:
                return


def learning_rate(settings: TuneSettings, done: float) -> float:
    """Cosine annealing to 0 over the whole run; `done` is the finished share of it."""
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class Tuner:
    """The trainable parts of a T2I model: decoder (or its adapters), projection, Adam, moving average, step.

    `noising` says how the model was taught to remove noise (noising.py).
    """

    def __init__(self, network: Network, noising: Any) -> None:
        self.network, self.noising = network, noising
        self.decoder: Any = network.decoder
        self.dtype: torch.dtype = self.decoder.dtype  # that it came in
        self.projection: nn.Linear | None = None
        self.rank: int | None = None
        self.merge: str | None = None
        self.step = 0
        self.chains: list[inserted.Chain] = []  # adapters of other models, which stay as they came
        self.layers: dict[str, inserted.Inserted] = {}
        self.inserted_by = 0  # the seed of the maps around them
        self.trained: dict[str, nn.Parameter] = {}
        self.average: dict[str, Tensor] = {}
        self.moments = "float32"
        self.optimizer: torch.optim.Optimizer | None = None
        self.share = Share()
        self.decoder.requires_grad_(False)

    def insert(self, chains: Sequence[inserted.Chain], seed: int) -> None:
        """Put adapters of other models into the decoder, which stays frozen but for the maps around them; again: other
        values of the same shapes. ValueError where they do not fit, or where the decoder was tuned without them."""
        if not self.layers:
            if self.optimizer is not None:
                raise ValueError("the decoder was tuned already: adapters can only be inserted before that")
            self.layers, self.inserted_by = (
                inserted.insert(self.decoder, self.network.adapter_places(), chains, seed),
                seed,
            )
        for m, layer in enumerate(self.layers.values()):
            layer.load(inserted.at_place(chains, m, len(self.layers)))
        self.chains = list(chains)

    def prepare(self, rank: int | None, merge: str, width: int | None, seed: int, moments: str = "float32") -> None:
        """Make decoder, and projection if there are representations of `width`, trainable; once each."""
        if self.optimizer is None:
            self.rank, self.merge, self.moments = rank, merge, moments
            self._open_decoder(seed)
        if moments != self.moments:
            raise ValueError(f"the decoder is tuned with moments={self.moments}; {moments} cannot go on from it")
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
        if self.layers:  # the decoder stays frozen around them
            if self.rank:
                raise ValueError(
                    "lora trains the decoder, which stays frozen around inserted adapters: leave lora null"
                )
        elif self.rank:
            from peft import LoraConfig

            with seeds.scoped(seed, "lora"):
                self.decoder.add_adapter(
                    LoraConfig(
                        r=self.rank,
                        lora_alpha=self.rank,
                        init_lora_weights="gaussian",
                        target_modules=self.network.adapted(),
                    )
                )
            for parameter in self.decoder.parameters():
                parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        else:
            self.decoder.float().requires_grad_(True)
            for name in self.network.text_parts:
                self.decoder.get_submodule(name).requires_grad_(False)
        parameters = {f"decoder.{k}": v for k, v in self.decoder.named_parameters() if v.requires_grad}
        self.optimizer = adam(parameters.values(), self.moments)
        self._follow(parameters)

    def _open_projection(self, width: int, seed: int) -> None:
        """P of eq 11. Zero at first where it is added (the start is the original model), random where it is a token."""
        out = self.network.time_width if self.merge == "time" else self.network.token_width
        with seeds.scoped(seed, "projection"):
            self.projection = nn.Linear(width, out)
        if self.merge != "token":
            nn.init.zeros_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)
        self.projection.to(next(self.decoder.parameters()).device)
        parameters = {f"projection.{k}": v for k, v in self.projection.named_parameters()}
        self._optimizer.add_param_group({"params": list(parameters.values())})
        self._follow(parameters)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        assert self.optimizer is not None
        return self.optimizer

    def _follow(self, parameters: dict[str, nn.Parameter]) -> None:
        self.trained |= parameters
        self.average |= {name: p.detach().clone() for name, p in parameters.items()}

    def prepare_for(self, data: TuneData, settings: TuneSettings, seed: int) -> None:
        """`prepare` for these samples and settings."""
        reps = data.representations_ND
        self.prepare(settings.lora, settings.merge, None if reps is None else reps.shape[-1], seed, settings.moments)

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
        self.prepare_for(data, settings, seed)
        batches = list(drawn_batches(data.label_N, settings, seed))
        losses, omitted, seen = 0.0, 0.0, sum(map(len, batches))
        if settings.checkpointing:
            self.decoder.enable_gradient_checkpointing()
        self.decoder.train()
        mixed = partial(self._mixed, data.latents_N.device)
        denoise = self.share.prepared(Denoise(self.network, self.projection, settings.merge, mixed))
        apart = (self.share.rank,) if self.share.rank else ()
        for i, rows in enumerate(batches):
            lr = learning_rate(settings, (max(rounds[0] - 1, 0) + i / len(batches)) / max(rounds[1], 1))
            with seeds.scoped(seed, "dropout", self.step, *apart):  # of a decoder that has it: GLIDE's
                loss, hidden = self._step(denoise, data, rows, settings, lr, seed)
            losses, omitted = losses + loss * len(rows), omitted + hidden
            if progress:
                progress(i + 1, len(batches))
        self.decoder.eval()
        if settings.fresh_moments:
            self._optimizer.state.clear()
        return {"t2i/loss": losses / seen, "t2i/omitted": omitted / seen, "t2i/steps": float(self.step)}

    def _draw(self, data: TuneData, rows: Tensor, settings: TuneSettings, seed: int) -> Draws:
        random = seeds.generator(seed, "step", self.step)
        size = len(rows)
        omit, drop, label = (
            torch.rand(size, generator=random) < p for p in (settings.omission, settings.text_drop, settings.label_only)
        )
        time = self.noising.drawn(size, random, settings)
        noise = torch.randn(size, *data.latents_N.shape[1:], generator=random)
        if settings.text != "label+caption":
            label = torch.full_like(label, settings.text == "label")
        # a sample that no client's representation was fused for has a row of zeros: nothing to show
        shown = False if data.representations_ND is None else data.representations_ND[rows].any(1).cpu()
        omit = omit | ~torch.as_tensor(shown)
        return Draws(omit, drop, label, time, noise)

    def _step(
        self, denoise: nn.Module, data: TuneData, rows: Tensor, settings: TuneSettings, lr: float, seed: int
    ) -> tuple[float, float]:
        """One step; the loss of the whole batch, and how many of its representations were omitted."""
        whole, device = self._draw(data, rows, settings, seed), data.latents_N.device
        mine, weight = self.share.rows(len(rows))
        drawn, rows = whole.of(mine), rows[mine]
        latents, noise, time = data.latents_N[rows], drawn.noise_B.to(device), drawn.time_B.to(device)
        texts = torch.where(drawn.label_B, data.label_N[rows], data.full_N[rows]).masked_fill(drawn.drop_B, 0)
        reps = None if data.representations_ND is None else data.representations_ND[rows].to(device)
        noisy = self.noising.noisy(latents, noise, time)
        said = denoise(noisy, time, data.texts_U[texts], reps, (drawn.omit_B | drawn.drop_B).to(device))
        channels = latents.shape[1]
        loss = self._loss(said[:, :channels], self.noising.target(latents, noise, time), time, settings)
        if settings.variational and said.shape[1] == 2 * channels:
            loss = loss + variational_term(said, latents, noisy, time, self.noising.config).mean()
        loss = weight * loss
        told = self.share.whole(loss)
        if not math.isfinite(told):
            raise FloatingPointError(f"the T2I loss is {told} at step {self.step}; lower the learning rate")
        self._descend(loss, settings, lr)
        return told, float(whole.omit_B.sum())

    def _loss(self, said: Tensor, target: Tensor, time_B: Tensor, settings: TuneSettings) -> Tensor:
        """Eq 12, each sample weighed as its model is trained."""
        weights_B = self.noising.weights(time_B, settings)
        if weights_B is None:
            return mse_loss(said, target)
        return (weights_B * (said - target).square().flatten(1).mean(1)).mean()

    def _mixed(self, device: torch.device) -> Any:
        """The context of a forward pass: autocast where float32 weights stand for a decoder of another dtype."""
        if self.dtype == torch.float32 or self.rank:
            return nullcontext()
        return torch.autocast(device.type, self.dtype)

    def _descend(self, loss: Tensor, settings: TuneSettings, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        self.share.backward(loss)
        nn.utils.clip_grad_norm_(self.trained.values(), settings.clip)
        self._optimizer.step()
        # a plain 0.999 would still hold 80 % of the start after 200 steps, so the average begins short and lengthens
        decay = min(settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averages = [self.average[name] for name in self.trained]
            torch._foreach_lerp_(averages, list(self.trained.values()), 1 - decay)
        self.step += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the decoder holds the moving average, which synthesizes, in the dtype that it came in."""
        held = {name: parameter.data for name, parameter in self.trained.items()}
        for name, parameter in self.trained.items():
            parameter.data = self.average[name].to(self.dtype)
        try:
            yield
        finally:
            for name, parameter in self.trained.items():
                parameter.data = held[name]

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Within, everything lies in main memory, because other processes need the GPU."""
        device = next(self.decoder.parameters()).device
        self._move(torch.device("cpu"))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            yield
        finally:
            self._move(device)

    def _move(self, device: torch.device) -> None:
        self.decoder.to(device)
        if self.projection is not None:
            self.projection.to(device)
        self.average = {name: value.to(device) for name, value in self.average.items()}
        for parts in self._optimizer.state.values():
            for part, value in parts.items():
                if isinstance(value, Tensor) and part != "step":  # Adam counts its steps in main memory
                    parts[part] = value.to(device)

    def adapter_layers(self) -> dict[str, Tensor]:
        """The averaged LoRA layers in float32, by diffusers' names. Their scale is 1, so no alpha is needed."""
        names = {name.removeprefix("decoder."): value for name, value in self.average.items() if "lora_" in name}
        return {name.replace(".default.weight", ".weight"): value.cpu().contiguous() for name, value in names.items()}

    def inserted_layers(self) -> dict[str, Tensor]:
        """The adapters of other models as they are, and the averaged maps around them, by their names."""
        averages = {name: value.cpu().clone().contiguous() for name, value in self.average.items()}
        return averages | inserted.as_tensors(self.chains)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Copies of everything that a further step depends on."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.trained.items():
            parts = {"weight": parameter.detach(), "average": self.average[name], **self._optimizer.state[parameter]}
            tensors |= {f"{name}/{part}": torch.as_tensor(value).cpu().clone() for part, value in parts.items()}
        tensors |= inserted.as_tensors(self.chains)
        how = {"lora": self.rank, "merge": self.merge, "moments": self.moments, "inserted_by": self.inserted_by}
        return tensors, {"step": self.step, **how}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Continue from `state`, on a tuner of an equal model. ValueError names a tensor that does not fit."""
        if chains := inserted.from_tensors(tensors):
            self.insert(chains, int(meta["inserted_by"]))
        if not any(name.endswith("/weight") for name in tensors):
            return
        width = tensors["projection.weight/weight"].shape[1] if "projection.weight/weight" in tensors else None
        self.prepare(meta["lora"], meta["merge"], width, seed=0, moments=meta.get("moments", "float32"))
        self.step = int(meta["step"])
        self._optimizer.state.clear()
        for name, parameter in self.trained.items():
            fitting(tensors, f"{name}/weight", parameter.data)
            fitting(tensors, f"{name}/average", self.average[name])
            if f"{name}/step" in tensors:
                self._optimizer.state[parameter] = self._moments(tensors, name, parameter)

    def _moments(self, tensors: dict[str, Tensor], name: str, parameter: nn.Parameter) -> dict[str, Any]:
        """What Adam held of a parameter. ValueError names a tensor that does not fit."""
        step = tensors[f"{name}/step"].clone()
        if self.moments == "float32":
            moments = {part: torch.zeros_like(parameter.data) for part in ("exp_avg", "exp_avg_sq")}
            for part, value in moments.items():
                fitting(tensors, f"{name}/{part}", value)
            return {"step": step, **moments}
        held = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        for part in ("state1", "state2"):  # the others, maps and scales of blocks, follow from these
            found = held.get(part)
            if found is None or found.shape != parameter.shape or found.dtype not in (torch.uint8, torch.float32):
                raise ValueError(f"the checkpoint does not fit this model: {name}/{part}")
        kept = {part: held[part].to(parameter.device) for part in held if part not in ("weight", "average", "step")}
        return {"step": int(step), **kept}


def adam(parameters: Iterable[nn.Parameter], moments: str) -> torch.optim.Optimizer:
    """Adam with its moments in float32, or in 8 bits with a scale for each block (arXiv 2110.02861)."""
    if moments == "float32":
        return torch.optim.Adam(parameters, lr=0.0)
    from bitsandbytes.optim import Adam8bit  # an extra: TuneSettings says where it is missing

    parameters = list(parameters)
    for parameter in parameters:  # as the first step would: its moments go through memory in this order, as files do
        parameter.data = parameter.data.contiguous()
    return Adam8bit(parameters, lr=0.0)


def fitting(tensors: dict[str, Tensor], name: str, target: Tensor) -> None:
    """Copy a named tensor into one of the same shape, keeping the target's memory layout."""
    if name not in tensors or tensors[name].shape != target.shape:
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        raise ValueError(f"the checkpoint does not fit this model: {name} is {found}, needed {tuple(target.shape)}")
    target.copy_(tensors[name])


def predict(
    network: Network,
    noisy_B: Tensor,
    time_B: Tensor,
    texts_B: Texts,
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
    dtype = network.decoder.dtype
    noisy_B = noisy_B.to(dtype)
    if noisy_B.device.type == "cpu":
        noisy_B = noisy_B.contiguous(memory_format=torch.channels_last)
    texts_B = texts_B.to(dtype)
    if extra_BW is None or bool(omit_B.all()):
        return network(noisy_B, time_B, texts_B)
    extra_BW = extra_BW.to(dtype)
    if merge == "token":
        with_B, without_B = (~omit_B).nonzero().flatten(), omit_B.nonzero().flatten()
        shown = texts_B[with_B]
        longer = shown.with_tokens(torch.cat([shown.tokens, extra_BW[with_B, None]], 1))
        parts = [network(noisy_B[with_B], time_B[with_B], longer)]
        if len(without_B):
            parts.append(network(noisy_B[without_B], time_B[without_B], texts_B[without_B]))
        return torch.cat(parts)[torch.argsort(torch.cat([with_B, without_B]))]
    shown_BW = extra_BW.masked_fill(omit_B[:, None], 0)
    if merge == "add":
        return network(noisy_B, time_B, texts_B.with_tokens(texts_B.tokens + shown_BW[:, None]))
    embedding = network.decoder.get_submodule(network.time_module)
    hook = embedding.register_forward_hook(lambda module, inputs, output: output + shown_BW)
    try:
        return network(noisy_B, time_B, texts_B)
    finally:
        hook.remove()
