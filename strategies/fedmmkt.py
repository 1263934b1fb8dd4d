"""FedMMKT, server half (arXiv 2510.12254, Algorithm 1). Client half: client_app/methods/fedmmkt.py.

Down: synthetic samples, then targets. Up: answers (or logits). Weights and private data never travel.
Axes: K clients, N samples, C classes, D width. Equation numbers and every free choice: docs/methods/fedmmkt.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from florilegium import seeds
from florilegium.config.bounds import between, one_of
from florilegium.config.diffusion import TuneSettings
from florilegium.federation.federation import Federation, Reply, means_of
from florilegium.federation.guard import Guard
from florilegium.learning.averaging import named, part
from florilegium.learning.metrics import confusion
from florilegium.methods.fedmmkt import consensus, costs
from florilegium.protocol import pixels
from florilegium.protocol.payloads import Answers, Logits, Nothing, Report, Samples, Targets
from strategies.blocks.exchanges import EXCHANGES, Exchanges
from strategies.blocks.rounds import Rounds
from strategies.blocks.synthesis import Reservoir, draw_classes, filled, joint_state, mean_bytes, restore_joint


@dataclass
class FedMMKTSettings:
    """Server settings; the paper's symbol in the comment, `ours` where the paper is silent."""

    variant: str = "representation"  # representation (FedMMKT) | logit (l-) | unimodal (u-)
    exchanges: str = "separate"  # separate: train, represent, distill | joined: one message a round
    samples: int = 240  # N, synthetic samples a round
    class_sampling: str = "stratified"  # stratified | uniform; ours
    sample_guidance: float | None = None  # None: diffusion.guidance, by which the model is judged; ours
    image_format: str = "png"  # png | webp | jpeg on the wire
    labvote: bool = True  # off: prompt labels, all samples kept (Table VI, -LabVote)
    confidence: str = "exp_neg"  # eq 3: exp_neg | inverse | normalized; ours
    vote_threshold: float = 0.5  # rho, eq 5; ours
    balance: bool = True  # every client's weights sum to the same over a round; ours
    prompt_weight: float = 1.0  # a vote for the drawn class, as of one client; 0 in the paper
    fusion: bool = True  # off: no representation path (Table VI, -MultiRepFusion)
    cross_attention: str = "batch"  # eqs 6-7: batch | channel | single | none; ours
    attention_temperature: float | None = None  # None: 1 / sqrt(D)
    residual: float = 0.5  # g, share of the attended part; ours
    temperature: float = 0.1  # tau, eq 8; 1 is the literal reading
    include_self: bool = True  # j = i in eq 8's denominator
    normalise: str = "joint"  # eq 9: joint | per_modality
    client_representations: bool = True  # off: clients learn labels only (Table VI, -Client_Rep)
    t2i_representations: bool = True  # off: T2I sees text only (Table VI, -T2I_Rep)
    tune_t2i: bool = True
    replay: int = 0  # earlier kept samples the T2I model is tuned on again; 0: current only
    fill: float = 0.0  # share of each class's samples the T2I model is tuned on at least; ours
    t2i: TuneSettings = field(default_factory=TuneSettings)  # eqs 11-12

    def __post_init__(self) -> None:
        one_of("variant", self.variant, ("representation", "logit", "unimodal"))
        one_of("exchanges", self.exchanges, EXCHANGES)
        one_of("class_sampling", self.class_sampling, ("stratified", "uniform"))
        one_of("image_format", self.image_format, tuple(pixels.FORMATS))
        one_of("confidence", self.confidence, consensus.CONFIDENCES)
        one_of("cross_attention", self.cross_attention, consensus.ATTENTIONS)
        one_of("normalise", self.normalise, ("joint", "per_modality"))
        between("vote_threshold", self.vote_threshold, 0, 1)
        between("residual", self.residual, 0, 1)
        between("fill", self.fill, 0, 1)
        between("temperature", self.temperature, 1e-4, 100)
        between("samples", self.samples, 1, 1_000_000)
        between("sample_guidance", self.sample_guidance or 1, 0, 100)


class FedMMKT(Rounds):
    """Mutual knowledge transfer between a server's T2I model and heterogeneous clients."""

    Settings = FedMMKTSettings
    alone = "fused in the one-modality form (eq 33): each client is compared with the mean of all"

    def __init__(self, settings: FedMMKTSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.classes, self.seed = resources.classes, resources.seed
        self.generator, self.caption = resources.generator(), resources.captioner()
        self.replay, self.exchanges = Reservoir(settings.replay), Exchanges(settings.exchanges)

    @classmethod
    def left_empty(cls, settings: FedMMKTSettings) -> frozenset[str]:
        fused = settings.client_representations and settings.fusion and settings.variant != "logit"
        return frozenset() if fused else frozenset({"Targets.representations", "Joined.representations"})

    def begin(self, federation: Federation) -> dict[str, float]:
        federation.ask("train", Nothing(), Nothing, Report)  # eq 1: every client's Standalone start
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        s = self.settings
        drawn_N = draw_classes(len(self.classes), s.samples, s.class_sampling, self.seed, r)
        images = self.synthesize(drawn_N, r)  # eq 2
        captions = self.caption(images)
        ids_N = torch.arange(s.samples) + r * s.samples
        sent = {
            "image": Samples(ids_N, images=pixels.encode(images, s.image_format)),
            "text": Samples(ids_N, texts=tuple(captions)),
        }

        replies = self.ask_answers(federation, sent, ids_N)  # eqs 1, 3
        label_N, keep_N, fused_ND, metrics = self.agree(federation.guard, replies, drawn_N)  # eqs 4-10
        ids, labels = ids_N[keep_N], label_N[keep_N]
        fused = fused_ND[keep_N] if s.client_representations else fused_ND[keep_N, :0]

        distilling = self.exchanges.teach(
            federation, r, r == self.num_rounds, Targets(ids, labels, fused), replies
        )  # eq 13
        shown_N, used_N = filled(drawn_N, label_N, keep_N, s.fill)
        losses = self.tune(r, images, captions, fused_ND, shown_N, used_N)  # eqs 11-12
        distilled = self.exchanges.taught(federation, distilling)
        return (
            metrics
            | losses
            | means_of(distilled)
            | self.judged(images, drawn_N, label_N, keep_N)
            | self.modelled_bytes(replies, sent)
        )

    # -- synthesis (eq 2) and the question to the clients (eq 3) --------------------------------------------------

    def synthesize(self, drawn_N: Tensor, r: int) -> Tensor:
        """One image for each drawn class, its noise named by round and position."""
        noise = [seeds.seed_of(self.seed, "synthesis", r, n) for n in range(len(drawn_N))]
        prompts = [self.classes.prompt(c) for c in drawn_N.tolist()]
        return self.generator.synthesize(prompts, noise, self.settings.sample_guidance)

    def ask_answers(self, federation: Federation, sent: dict[str, Samples], ids_N: Tensor) -> list[Reply]:
        """Every client of the cohort trains, then answers the samples of its modality; replies share one width."""
        s, width = self.settings, self.resources.width
        bounds = {"N": len(ids_N), "C": len(self.classes), "D": width, "A": width if s.variant == "unimodal" else 0}
        expect = Logits if s.variant == "logit" else Answers
        return self.exchanges.answers(federation, sent, expect, bounds=bounds, ids=ids_N)

    # -- LabVote (eqs 4-5) and MultiRepFusion (eqs 6-10) -----------------------------------------------------------

    def agree(
        self, guard: Guard, replies: list[Reply], drawn_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
        """Consensus labels [N], keep [N], fused representations [N, D] (width 0 without fusion), metrics."""
        s, modalities = self.settings, [x.client.modality for x in replies]
        fused_ND = torch.zeros(len(drawn_N), 0)
        if s.variant == "logit":
            logits_KNC = torch.stack([x.body.logits for x in replies])
            vote_KN = logits_KNC.argmax(-1)
            label_N, _, weight_KN = consensus.fuse_logits(logits_KNC, modalities, s.temperature)  # eqs 28-31
            keep_N = consensus.enough_votes(vote_KN, label_N, s.vote_threshold)  # eq 5
        else:
            vote_KN = torch.stack([x.body.labels for x in replies])
            sure_KN = consensus.bounded(torch.stack([x.body.confidence for x in replies]), s.confidence)
            sure_KN = consensus.balanced(sure_KN) if s.balance else sure_KN
            sure_KN = guard.votes(sure_KN, replies)  # conf/defence
            label_N, keep_N, _ = consensus.labvote(
                vote_KN, sure_KN, len(self.classes), s.vote_threshold, drawn_N, s.prompt_weight
            )  # eqs 4-5
            weight_KN = None
        label_N, keep_N = guard.released(vote_KN, label_N, keep_N, drawn_N, s.prompt_weight)  # conf/privacy
        if not s.labvote:
            label_N, keep_N = drawn_N, torch.ones_like(keep_N)
        if s.variant != "logit" and s.fusion and keep_N.any():
            fused_ND, weight_KN = self.fuse(replies, modalities, keep_N)  # eqs 6-10
        metrics = {
            f"labels/client_{x.client.id}_agrees": (v == label_N).float().mean().item()
            for x, v in zip(replies, vote_KN, strict=True)
        }
        if weight_KN is not None:
            mean_K = weight_KN.mean(1).tolist()
            metrics |= {f"fusion/weight_{x.client.id}": w for x, w in zip(replies, mean_K, strict=True)}
        return label_N, keep_N, fused_ND, metrics

    def fuse(self, replies: list[Reply], modalities: list[str], keep_N: Tensor) -> tuple[Tensor, Tensor]:
        """MultiRepFusion over the kept samples; rejected rows are zero and never used."""
        s = self.settings
        reps_KND = torch.stack([x.body.representations[keep_N] for x in replies])
        augmented = torch.stack([x.body.augmented[keep_N] for x in replies]) if s.variant == "unimodal" else None
        kept_ND, weight_KN = consensus.fuse(
            reps_KND,
            ["one"] * len(replies) if s.variant == "unimodal" else modalities,
            augmented_KND=augmented,
            attention=s.cross_attention,
            residual=s.residual,
            attention_temperature=s.attention_temperature,
            temperature=s.temperature,
            include_self=s.include_self,
            normalise=s.normalise,
        )
        fused_ND = kept_ND.new_zeros(len(keep_N), kept_ND.shape[-1])
        fused_ND[keep_N] = kept_ND
        return fused_ND, weight_KN

    # -- T2I fine-tuning (eqs 11-12) ---------------------------------------------------------------------------------

    def tune(
        self, r: int, images: Tensor, captions: list[str], fused_ND: Tensor, labels_N: Tensor, used_N: Tensor
    ) -> dict[str, float]:
        """Tune the decoder on the used samples (and the replay), conditioned on text and representation."""
        s = self.settings
        if not s.tune_t2i or not used_N.any():
            return {}
        captions = [c for c, used in zip(captions, used_N.tolist(), strict=True) if used]
        images, labels, fused_ND = images[used_N], labels_N[used_N], fused_ND[used_N]
        if not s.t2i_representations:
            fused_ND = fused_ND[:, :0]
        return self.replay.tune(
            self.generator, self.classes, s.t2i, (r, self.num_rounds), self.seed, images, labels, captions, fused_ND
        )

    # -- figures -------------------------------------------------------------------------------------------------------

    def judged(self, images: Tensor, drawn_N: Tensor, label_N: Tensor, keep_N: Tensor) -> dict[str, float]:
        """How good the consensus is: share kept, and agreement with the drawn classes and with the oracle judge."""
        oracle_N = self.resources.judge().predict(images)
        self.votes = confusion(label_N, drawn_N, len(self.classes))
        figures = {"labels/kept": keep_N.float().mean().item()}
        if keep_N.any():
            agree = {
                "labels/accuracy": label_N == oracle_N,
                "labels/agree_with_prompt": label_N == drawn_N,
                "prompts/accuracy": drawn_N == oracle_N,
            }
            figures |= {name: hit[keep_N].float().mean().item() for name, hit in agree.items()}
            figures["prompts/accuracy_all"] = (drawn_N == oracle_N).float().mean().item()
        return figures

    def modelled_bytes(self, replies: list[Reply], sent: dict[str, Samples]) -> dict[str, float]:
        """The paper's byte formula (Appendix E) at this run's constants, beside the measured bytes."""
        s, modalities = self.settings, [x.client.modality for x in replies]
        model = costs.modelled(
            s.samples,
            modalities.count("image"),
            modalities.count("text"),
            len(self.classes),
            self.resources.width,
            mean_bytes(sent["image"]),
            mean_bytes(sent["text"]),
            variant=s.variant,
        )
        return {"bytes/formula_up": model["up"], "bytes/formula_down": model["down"]}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = joint_state(self.generator, self.replay)
        owed, to_whom = self.exchanges.state()
        return tensors | named("exchanges", owed), meta | {"exchanges": to_whom}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        restore_joint(self.generator, self.replay, tensors, meta)
        self.exchanges.restore(part(tensors, "exchanges"), meta.get("exchanges", {"owed": {}}))
