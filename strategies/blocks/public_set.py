"""What server and clients talk about in a round: public pairs (proxy) or samples of the server's T2I model (synthetic).

Shared by methods that distil on public samples (docs/methods/logits.md). Table I of arXiv 2510.12254 gives
them a public set and no generator, Table III this round's synthetic samples and the tuning of the T2I model on the
labels they agree on. Axes: N samples, D width, S image side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from florilegium import seeds
from florilegium.config.diffusion import TuneSettings
from florilegium.config.fields import section, setting
from florilegium.data.public import open_public
from florilegium.federation.federation import Client, Federation, FederationError, Reply
from florilegium.learning.metrics import confusion
from florilegium.protocol.forms import Form
from florilegium.protocol.payloads import Logits, Report, Samples, Targets
from strategies.blocks.synthesis import Reservoir, draw_classes, joint_state, mean_bytes, restore_joint

LOG = getLogger("flwr")
CLASSIFIERS = ("image", "text")  # modalities that read one side of a pair and have classes
SOURCES = ("proxy", "synthetic")


@section
class PublicSetSettings:
    """The public set of a method, `method.server.public`. The papers' alignment sets are proxy sets."""

    source: str = setting(
        "proxy",
        "proxy: public pairs (data.public) | synthetic: samples of the server's T2I model; set it by method.public_set",
        choices=SOURCES,
    )
    samples: int = setting(
        240, "N: samples of a round; a proxy set with fewer pairs is taken whole", low=2, high=1_000_000
    )
    fresh: bool = setting(
        True,
        "with a proxy set: true draws other samples each round | false takes the same ones every round",
    )
    class_sampling: str = setting(
        "stratified",
        "with synthetic samples: stratified (equally many of each class) | uniform (our choice)",
        choices=("stratified", "uniform"),
    )
    sample_guidance: float | None = setting(
        None,
        "classifier-free guidance of synthetic samples; null takes diffusion.guidance (our choice)",
        low=0,
        high=100,
    )
    tune_t2i: bool = setting(
        True, "with synthetic samples: tune the T2I model on the labels that the clients agreed on (Table III)"
    )
    replay: int = setting(
        0, "with synthetic samples: earlier ones that the T2I model is tuned on again", low=0, high=1_000_000
    )
    t2i: TuneSettings = setting(help="how the T2I model is tuned (conf/tuning)", factory=TuneSettings)


def whole_set() -> PublicSetSettings:
    """For methods that show all public pairs in every round: 1,200 is the whole embedded set."""
    return PublicSetSettings(samples=1200, fresh=False)


@dataclass(frozen=True)
class PublicRound:
    """A round's N samples: ids [N], images uint8 [N, 3, S, S], texts, and the class [N] each was drawn for or has."""

    ids: Tensor
    labels: Tensor
    images: Any  # a tensor, or StoredImages
    texts: tuple[str, ...]
    form: Form

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def sent(self) -> dict[str, Samples]:
        """What a client of each modality gets of them: ids and its side of the pairs, never a label. Encoded when it is
        first needed: methods whose clients have the set send ids alone."""
        images = Samples(self.ids, images=self.form.images(self.images))
        return {"image": images, "text": Samples(self.ids, texts=self.texts)}


class PublicSet:
    """Draws a round's samples, tunes the generator (where there is one) on them, says how good their labels are.

    `generator` is the T2I model with `synthetic`, None with `proxy`: a strategy's own `generator` is this one.
    """

    def __init__(self, settings: PublicSetSettings, resources: Any) -> None:
        self.settings, self.resources = settings, resources
        self.classes, self.seed = resources.classes, resources.seed
        self.form = Form.of(resources.conf)
        self.replay = Reservoir(settings.replay)
        self.generator: Any = None
        self.pairs: Any = None
        if settings.source == "synthetic":
            self.generator, self.caption = resources.generator(), resources.captioner()
        else:
            self.pairs = open_public(resources.conf)

    # -- samples ------------------------------------------------------------------------------------------------------

    def drawn(self, r: int) -> PublicRound:
        """The samples of round `r`; the same for every method of this seed."""
        s = self.settings
        if self.pairs is not None:
            pairs = self.pairs.select(self.chosen(r))
            ids, labels, images, texts = pairs.ids, pairs.labels, pairs.images, pairs.texts
        else:
            labels = draw_classes(len(self.classes), s.samples, s.class_sampling, self.seed, r)
            ids = torch.arange(s.samples) + r * s.samples
            noise = [seeds.seed_of(self.seed, "synthesis", r, n) for n in range(s.samples)]
            images = self.generator.synthesize(
                [self.classes.prompt(c) for c in labels.tolist()], noise, s.sample_guidance
            )
            texts = tuple(self.caption(images))
        return PublicRound(ids, labels, images, texts, self.form)

    def chosen(self, r: int) -> Tensor:
        """[N] rows of the proxy set for round `r`, in their own order."""
        random = seeds.generator(self.seed, "public", r if self.settings.fresh else "all rounds")
        return torch.randperm(len(self.pairs), generator=random)[: self.settings.samples].sort().values

    # -- T2I fine-tuning (Table III) ----------------------------------------------------------------------------------

    def tune(
        self,
        rounds: tuple[int, int],
        public: PublicRound,
        label_N: Tensor,
        fused_ND: Tensor | None = None,
        keep_N: Tensor | None = None,
    ) -> dict[str, float]:
        """Tune the T2I model on the samples under the labels agreed on, and on `fused_ND` where a method has it.

        `rounds` is (this one, all of them). Nothing happens with a proxy set.
        """
        s = self.settings
        keep_N = torch.ones(len(public), dtype=torch.bool) if keep_N is None else keep_N
        if self.generator is None or not s.tune_t2i or not keep_N.any():
            return {}
        fused_ND = torch.zeros(len(public), 0) if fused_ND is None else fused_ND
        captions = [text for text, kept in zip(public.texts, keep_N.tolist(), strict=True) if kept]
        return self.replay.tune(
            self.generator,
            self.classes,
            s.t2i,
            rounds,
            self.seed,
            public.images[keep_N],
            label_N[keep_N],
            captions,
            fused_ND[keep_N],
        )

    # -- figures ------------------------------------------------------------------------------------------------------

    def judged(self, public: PublicRound, label_N: Tensor) -> dict[str, float]:
        """How right the labels agreed on are: by the pairs' own labels, or by the judge of the T2I accuracy."""
        if self.pairs is not None:
            return {"labels/accuracy": (label_N == public.labels).float().mean().item()}
        if self.resources.why_no_judge:
            return {"labels/agree_with_prompt": (label_N == public.labels).float().mean().item()}
        oracle_N = self.resources.judge().predict(public.images)
        agree = {
            "labels/accuracy": label_N == oracle_N,
            "labels/agree_with_prompt": label_N == public.labels,
            "prompts/accuracy": public.labels == oracle_N,
        }
        return {name: hit.float().mean().item() for name, hit in agree.items()}

    def votes(self, public: PublicRound, label_N: Tensor) -> Tensor:
        """[C, C] counts for the run's record: class of a sample by label agreed on."""
        return confusion(label_N, public.labels, len(self.classes))

    # -- checkpoint ---------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Generator and replay; nothing with a proxy set."""
        if self.generator is None:
            return {}, {}
        return joint_state(self.generator, self.replay)

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Put back what `state` gave; other names are left alone."""
        if self.generator is None:
            return
        restore_joint(self.generator, self.replay, tensors, meta)


# -- clients ---------------------------------------------------------------------------------------------------------


def classifiers(federation: Federation, method: str) -> tuple[list[Client], list[Client]]:
    """The cohort's clients that classify images or texts, and the others, which are named in the log and learn alone.

    FederationError when none is left.
    """
    taught = [client for client in federation.cohort if client.modality in CLASSIFIERS]
    others = [client for client in federation.cohort if client.modality not in CLASSIFIERS]
    if others:
        LOG.info("%s has nothing to exchange with %s: left to their own data", method, ", ".join(map(str, others)))
    if not taught:
        raise FederationError(
            f"{method} needs clients that classify images or texts; the cohort of round "
            f"{federation.round} has {', '.join(map(str, others)) or 'none'}"
        )
    return taught, others


# -- class scores of public samples ------------------------------------------------------------------------------------


def ask_scores(
    federation: Federation, public: PublicRound, classes: int, method: str, payload: type = Logits
) -> tuple[list[Reply], Tensor]:
    """Class scores [K, N, C] of the cohort's classifiers, each for its own modality's side, and who gave them.

    `payload` is what they come in: it has the field `logits`.
    """
    asked, _ = classifiers(federation, method)
    replies = federation.ask(
        "represent",
        lambda client: public.sent[client.modality],
        payload,
        clients=asked,
        bounds={"N": len(public), "C": classes},
        ids=public.ids,
    )
    return replies, torch.stack([x.body.logits for x in replies])


def warm_up(federation: Federation, public: PublicRound, classes: int, method: str) -> list[Reply]:
    """Let every classifier learn the public samples' own labels, before it ever saw a private row."""
    replies, _ = ask_scores(federation, public, classes, method)
    targets = Targets(public.ids, public.labels, torch.zeros(len(public), 0))
    return federation.ask("distill", targets, Report, clients=[x.client for x in replies])


def recorded(
    public_set: PublicSet,
    public: PublicRound,
    replies: list[Reply],
    logits_KNC: Tensor,
    label_N: Tensor,
) -> dict[str, float]:
    """How right the labels are, how often each client's own label is the same, and the bytes by formula."""
    votes = zip(replies, logits_KNC.argmax(-1), strict=True)
    agree = {f"labels/client_{x.client.id}_agrees": (v == label_N).float().mean().item() for x, v in votes}
    size = {m: mean_bytes(sent) for m, sent in public.sent.items()}
    down = sum(size[x.client.modality] for x in replies) / len(replies)
    scores = 4.0 * logits_KNC.shape[-1]
    return (
        agree
        | public_set.judged(public, label_N)
        | {"bytes/formula_up": len(public) * scores, "bytes/formula_down": len(public) * (scores + down)}
    )
