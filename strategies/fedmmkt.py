"""FedMMKT, server side (arXiv 2510.12254, Algorithm 1). Client side: client_app/methods/fedmmkt.py.

Down: synthetic samples, then targets. Up: answers (or logits). Weights and private data never travel.
Axes: K clients, N samples, C classes, D width. Equation numbers and every free choice: docs/methods/fedmmkt.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from florilegium import seeds
from florilegium.config.diffusion import TuneSettings
from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation, FederationError, Reply, means_of
from florilegium.federation.guard import Guard
from florilegium.federation.joining import EXCHANGES
from florilegium.learning.metrics import confusion
from florilegium.methods.fedmmkt import consensus, costs
from florilegium.protocol.forms import Form
from florilegium.protocol.payloads import Answers, Logits, Nothing, Report, Samples, Targets
from strategies.blocks.ahead import OVERLAPS, Ahead, Pool
from strategies.blocks.rounds import Rounds
from strategies.blocks.synthesis import Reservoir, draw_classes, filled, joint_state, mean_bytes, restore_joint


@section
class FedMMKTSettings:
    """Server settings of FedMMKT. "Our choice" in a help text marks what the paper leaves open."""

    variant: str = setting(
        "representation",
        "what clients send: representation (FedMMKT) | logit (l-FedMMKT) | unimodal (u-FedMMKT)",
        choices=("representation", "logit", "unimodal"),
    )
    exchanges: str = setting(
        "separate",
        "separate: the three messages train, represent and distill each round | joined: one message carries all three",
        choices=EXCHANGES,
    )
    overlap: str = setting(
        "none",
        "when a round's samples are made: none (as it begins) | distill (a round ahead, while clients distil: the same "
        "numbers) | train (a round ahead, while clients train, by a generator that is one tuning older) (our choice)",
        choices=OVERLAPS,
    )
    samples: int = setting(240, "N: synthetic samples of a round", low=1, high=1_000_000)
    class_sampling: str = setting(
        "stratified",
        "how the classes of the samples are drawn: stratified (equally many of each) | uniform (our choice)",
        choices=("stratified", "uniform"),
    )
    sample_guidance: float | None = setting(
        None,
        "classifier-free guidance of the synthetic samples; null takes diffusion.guidance, which the evaluation and "
        "the other methods use (our choice)",
        low=0,
        high=100,
    )
    labvote: bool = setting(
        True,
        "LabVote: clients vote on each sample's label; false keeps every sample with the label of its prompt "
        "(Table VI, -LabVote)",
    )
    confidence: str = setting(
        "exp_neg",
        "eq. 3: how the entropy of an answer becomes a confidence: exp_neg | inverse | normalized (our choice)",
        choices=consensus.CONFIDENCES,
    )
    vote_threshold: float = setting(
        0.25,
        "rho of eq. 5: a label needs at least rho x K votes if K clients answered; 0.25: one of four must agree "
        "(our choice)",
        low=0,
        high=1,
    )
    balance: bool = setting(
        True, "give every client weights with mean one over a round; false is the paper's literal reading (our choice)"
    )
    prompt_weight: float = setting(
        0.0,
        "weight of the vote for the class that was drawn, counted in clients; 0, the paper's: clients alone vote",
        low=0,
        high=1e6,
    )
    prompt_veto: bool = setting(
        True,
        "leave out a sample whose consensus is not the class of its prompt; false is the paper's literal reading "
        "(our choice)",
    )
    fusion: bool = setting(
        True, "MultiRepFusion: use representations; false sends and uses labels only (Table VI, -MultiRepFusion)"
    )
    cross_attention: str = setting(
        "batch",
        "eqs. 6 and 7: what attention compares: batch (samples) | channel | single | none (our choice)",
        choices=consensus.ATTENTIONS,
    )
    attention_temperature: float | None = setting(
        None, "temperature of the attention; null takes 1 / sqrt(D)", low=1e-6, high=1e6
    )
    residual: float = setting(
        0.5, "g: share of the attended part in a representation; the rest is the original (our choice)", low=0, high=1
    )
    temperature: float = setting(
        0.1, "tau of eq. 8: temperature of the similarity; 1 is the paper's literal reading", low=1e-4, high=100
    )
    include_self: bool = setting(True, "keep the pair j = i in the denominator of eq. 8")
    normalise: str = setting(
        "joint",
        "eq. 9: weights sum to one over all clients (joint) | over the clients of each modality (per_modality)",
        choices=("joint", "per_modality"),
    )
    client_representations: bool = setting(
        True, "send the fused representations to the clients; false sends labels only (Table VI, -Client_Rep)"
    )
    t2i_representations: bool = setting(
        True, "tune the T2I model with the fused representations; false uses text only (Table VI, -T2I_Rep)"
    )
    tune_t2i: bool = setting(True, "tune the T2I model; false leaves it as it is")
    replay: int = setting(
        0, "earlier kept samples that the T2I model is tuned on again; 0 uses this round's only", low=0, high=1_000_000
    )
    fill: float = setting(
        0.5,
        "smallest share of each class's samples that the T2I model is tuned on: those that most clients agreed with; "
        "0 is the paper's literal reading (our choice)",
        low=0,
        high=1,
    )
    t2i: TuneSettings = setting(help="how the T2I model is tuned, eqs. 11 and 12", factory=TuneSettings)


class FedMMKT(Rounds):
    """Mutual knowledge transfer between a server's T2I model and heterogeneous clients."""

    Settings = FedMMKTSettings
    alone = "fused in the one-modality form (eq 33): each client is compared with the mean of all"

    def __init__(self, settings: FedMMKTSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.classes, self.seed = resources.classes, resources.seed
        self.generator, self.caption = resources.generator(), resources.captioner()
        self.replay = Reservoir(settings.replay)
        self.ahead = Ahead(self.make, settings.overlap)

    @classmethod
    def left_empty(cls, settings: FedMMKTSettings) -> frozenset[str]:
        fused = settings.client_representations and settings.fusion and settings.variant != "logit"
        return frozenset() if fused else frozenset({"Targets.representations"})

    def begin(self, federation: Federation) -> dict[str, float]:
        if self.settings.variant == "unimodal" and any(client.modality == "pair" for client in federation.clients):
            raise FederationError("method.variant=unimodal serves clients of one modality, not clients of pairs")
        training = federation.send("train", Nothing(), Nothing, Report)  # eq 1: every client's Standalone start
        self.ahead.fill(1, self.num_rounds, training, "distill", "train")
        federation.collect(training)
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        s = self.settings
        pool = self.ahead.take(r)  # eq 2
        drawn_N, images, captions = pool.drawn, pool.images, pool.captions
        ids_N = torch.arange(s.samples) + r * s.samples
        sent = {
            "image": Samples(ids_N, images=Form.of(self.resources.conf).images(images)),
            "text": Samples(ids_N, texts=tuple(captions)),
        }
        sent["pair"] = Samples(ids_N, sent["image"].images, sent["text"].texts)  # both towers see a sample

        training = federation.send("train", Nothing(), Nothing, Report)  # eq 1
        self.ahead.fill(r + 1, self.num_rounds, training, "train")  # eq 2 of the next round, with overlap=train
        federation.collect(training)
        replies = self.ask_answers(r, federation, sent, ids_N)  # eq 3
        label_N, keep_N, fused_ND, votes_N, metrics = self.agree(federation.guard, replies, drawn_N)  # eqs 4-10
        ids, labels = ids_N[keep_N], label_N[keep_N]
        fused = fused_ND[keep_N] if s.client_representations else fused_ND[keep_N, :0]

        asked = [reply.client for reply in replies]
        distilling = federation.send("distill", Targets(ids, labels, fused), Report, clients=asked)  # eq 13
        shown_N, used_N = filled(drawn_N, label_N, keep_N, s.fill, votes_N)
        losses = self.tune(r, images, captions, fused_ND, shown_N, used_N)  # eqs 11-12
        self.ahead.fill(r + 1, self.num_rounds, distilling, "distill")  # eq 2 of the next round, with overlap=distill
        distilled = federation.collect(distilling)
        return (
            metrics
            | losses
            | means_of(distilled)
            | self.judged(images, drawn_N, label_N, keep_N)
            | self.modelled_bytes(replies, sent)
        )

    # -- synthesis (eq 2) and the question to the clients (eq 3) --------------------------------------------------

    def make(self, r: int) -> Pool:
        """Round `r`'s samples: an image and its caption for each drawn class, its noise named by round and position."""
        s = self.settings
        drawn_N = draw_classes(len(self.classes), s.samples, s.class_sampling, self.seed, r)
        noise = [seeds.seed_of(self.seed, "synthesis", r, n) for n in range(len(drawn_N))]
        prompts = [self.classes.prompt(c) for c in drawn_N.tolist()]
        images = self.generator.synthesize(prompts, noise, s.sample_guidance)
        return Pool(drawn_N, images, self.caption(images))

    def ask_answers(self, r: int, federation: Federation, sent: dict[str, Samples], ids_N: Tensor) -> list[Reply]:
        """Every client of the cohort answers the samples of its modality; replies share one width."""
        s, width = self.settings, self.resources.width
        bounds = {"N": len(ids_N), "C": len(self.classes), "D": width, "A": width if s.variant == "unimodal" else 0}
        expect = Logits if s.variant == "logit" else Answers
        asking = federation.send("represent", lambda client: sent[client.modality], expect, bounds=bounds, ids=ids_N)
        self.ahead.fill(r + 1, self.num_rounds, asking, "train")  # with exchanges=joined clients begin to train here
        return federation.collect(asking)

    # -- LabVote (eqs 4-5) and MultiRepFusion (eqs 6-10) -----------------------------------------------------------

    def agree(
        self, guard: Guard, replies: list[Reply], drawn_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, dict[str, float]]:
        """Consensus labels [N], keep [N], fused representations [N, D] (width 0 without fusion), the votes for the
        drawn classes [N] (None where privacy protects them), metrics."""
        s, modalities = self.settings, [x.client.modality for x in replies]
        fused_ND = torch.zeros(len(drawn_N), 0)
        if s.variant == "logit":
            logits_KNC = torch.stack([x.body.logits for x in replies])
            vote_KN = logits_KNC.argmax(-1)
            label_N, _, weight_KN = consensus.fuse_logits(logits_KNC, modalities, s.temperature)  # eqs 28-31
            keep_N = consensus.enough_votes(vote_KN, label_N, s.vote_threshold)  # eq 5
            sure_KN = torch.ones_like(vote_KN, dtype=logits_KNC.dtype)
        else:
            vote_KN = torch.stack([x.body.labels for x in replies])
            sure_KN = consensus.bounded(torch.stack([x.body.confidence for x in replies]), s.confidence)
            sure_KN = consensus.balanced(sure_KN) if s.balance else sure_KN
            sure_KN = guard.votes(sure_KN, replies)  # conf/defence
            label_N, keep_N, _ = consensus.labvote(
                vote_KN, sure_KN, len(self.classes), s.vote_threshold, drawn_N, s.prompt_weight
            )  # eqs 4-5
            weight_KN = None
        votes_N = None if guard.protects_votes else consensus.votes_for(vote_KN, sure_KN, drawn_N)
        label_N, keep_N = guard.released(vote_KN, label_N, keep_N, drawn_N, s.prompt_weight)  # conf/privacy
        if s.prompt_veto:
            keep_N = keep_N & (label_N == drawn_N)  # the prompt and the clients must say the same
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
        return label_N, keep_N, fused_ND, votes_N, metrics

    def fuse(self, replies: list[Reply], modalities: list[str], keep_N: Tensor) -> tuple[Tensor, Tensor]:
        """MultiRepFusion over the kept samples; rejected rows are zero and never used."""
        s = self.settings
        unimodal = s.variant == "unimodal"
        kept_ND, weight_KN = consensus.fuse(
            [x.body.representations for x in replies],  # not stacked: many clients' would stand in memory twice
            ["one"] * len(replies) if unimodal else modalities,
            augmented_KND=[x.body.augmented for x in replies] if unimodal else None,
            keep_N=keep_N,
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
        oracle_N = None if self.resources.why_no_judge else self.resources.judge().predict(images)
        self.votes = confusion(label_N, drawn_N, len(self.classes))
        figures = {"labels/kept": keep_N.float().mean().item()}
        if keep_N.any():
            agree = {"labels/agree_with_prompt": label_N == drawn_N}
            if oracle_N is not None:
                agree = {
                    "labels/accuracy": label_N == oracle_N,
                    **agree,
                    "prompts/accuracy": drawn_N == oracle_N,
                }
            figures |= {name: hit[keep_N].float().mean().item() for name, hit in agree.items()}
            if oracle_N is not None:
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
            pair_clients=modalities.count("pair"),
            variant=s.variant,
            form=Form.of(self.resources.conf),
        )
        return {"bytes/formula_up": model["up"], "bytes/formula_down": model["down"]}

    @staticmethod
    def planned_bytes(conf: Any, settings: FedMMKTSettings, image_bytes: float) -> dict[str, float]:
        """`up` and `down` of a client and round before a run, by the same formula; a text has 100 bytes."""
        kinds = [member.modality for member in conf.clients.mix]
        return costs.modelled(
            settings.samples,
            kinds.count("image"),
            kinds.count("text"),
            len(conf.data.classes or ()) or 100,
            conf.clients.width,
            image_bytes,
            text_bytes=100,
            pair_clients=kinds.count("pair"),
            variant=settings.variant,
            form=Form.of(conf),
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = joint_state(self.generator, self.replay)
        waiting, about = self.ahead.state()
        return tensors | waiting, meta | {"ahead": about}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        restore_joint(self.generator, self.replay, tensors, meta)
        self.ahead.restore(tensors, meta.get("ahead", {}))
