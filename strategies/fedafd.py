"""FedAFD, server side (arXiv 2603.04890). Client side: client_app/methods/fedafd/client.py.

Down: the global encoders (whole once, then what changed) and their features of the public pairs. Up: the clients'
features of these. Section numbers are those of our notes; every free choice: docs/methods/fedafd.md.
Axes: K clients, N public pairs, B batch, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from florilegium import seeds
from florilegium.config.fields import section, setting
from florilegium.data.public import open_public
from florilegium.federation.federation import Client, Federation, Reply
from florilegium.learning.averaging import named, part
from florilegium.learning.similarity import match_scores, similarity_weights, weighted
from florilegium.methods.fedafd.fidelity import Divergences, other_view
from florilegium.models.sizes import body_size
from florilegium.protocol.deltas import Sent
from florilegium.protocol.payloads import Features, Nothing, PublicSet, Report
from florilegium.protocol.validation import WireError
from strategies.blocks.representations import SIDES, UNIT, sides_of
from strategies.blocks.retriever import Retriever, RetrieverSettings
from strategies.blocks.rounds import Rounds


@section
class FedAFDSettings:
    """Server settings of FedAFD. "Our choice" in a help text marks what the paper leaves open."""

    fusion: str = setting(
        "gff",
        "what clients do with the global encoders: gff (GFF, fuse their features) | global (the frozen global encoder "
        "and a linear head, a control) | none",
        choices=("gff", "global", "none"),
    )
    alignment: bool = setting(True, "BAA: clients align with global features; false: no global features are sent")
    sed: bool = setting(True, "SED: distil the clients' features; false: the server trains on the public pairs alone")
    distillation: float = setting(0.4, "gamma: weight of the distillation", low=0, high=1e4)
    aggregator: str = setting(
        "similarity",
        "weights of the clients' features: similarity (SED) | uniform (the plain mean, a control)",
        choices=("similarity", "uniform"),
    )
    compare: str = setting(
        "same",
        "the features that the similarity compares with: same (of the client's modality) | cross (of the other "
        "modality, as CreamFL does)",
        choices=("same", "cross"),
    )
    temperature: float = setting(
        1.0,
        "temperature of SED's similarity; 1 in the paper, where the weights are nearly equal; 0.1 tells clients apart",
        low=1e-3,
        high=1e3,
    )
    pretrain_epochs: int = setting(
        0,
        "passes of the server over the public pairs before round 1; about 20 if its bodies were not trained "
        "before (our choice)",
        low=0,
        high=1_000_000,
    )
    tuned: str = setting(
        "projection",
        "what of the encoders learns after that: projection (the last layer; our choice) | all (the paper)",
        choices=("projection", "all"),
    )
    retriever: RetrieverSettings = setting(help="the server's encoders", factory=RetrieverSettings)
    divergences: Divergences = setting(
        help="where the released code differs from the paper (conf/fidelity)", factory=Divergences
    )


class FedAFD(Rounds):
    """Clients align with the server's encoders and fuse them with their own; the server distils what clients see."""

    Settings = FedAFDSettings

    def __init__(self, settings: FedAFDSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.public, self.sent = open_public(resources.conf), Sent()
        self.retriever = Retriever(settings.retriever, resources)
        self.seed, self.width = resources.seed, int(resources.width)
        self.server_model = self.retriever.model
        self.steps: dict[str, set[int]] = {"encoders": set(), "features": set()}

    def begin(self, federation: Federation) -> dict[str, float]:
        P = self.public
        federation.ask("represent", PublicSet(P.order, P.ids[:0]), Features)  # whoever has another set says so
        metrics = self.retriever.supervise(
            P.images, P.texts, P.groups, (0, self.num_rounds), self.settings.pretrain_epochs
        )
        metrics |= self.spread(federation)  # G_0: heads learn on fused
        federation.ask("train", Nothing(), Nothing, Report)  # E0: ours
        return metrics | self.bytes_apart(federation)

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        s, P, now = self.settings, self.public, (r, self.num_rounds)
        self.freeze()
        self.steps = {"encoders": set(), "features": set()}
        metrics = self.retriever.supervise(P.images, P.texts, P.groups, now)  # stage 1, section 7
        global_ND = self.features(r)  # I^g, T^g of the snapshot G_r
        metrics |= self.spread(federation)  # G_r
        down = Features(P.ids, global_ND["image"], global_ND["text"]) if s.alignment else Nothing()
        trained = federation.ask("train", down, Report)  # stage 2, sections 3 and 4
        self.steps["features"].add(federation.step)
        metrics |= client_metrics(trained)
        if s.sed:
            replies = self.ask_features(federation, [x.client for x in trained])  # I^c, T^c
            targets, weights = self.aggregated(replies, global_ND)  # stage 3, section 5
            metrics |= weights | self.distill(targets, now)  # section 6
        return metrics | self.bytes_apart(federation)

    @staticmethod
    def planned_bytes(conf: Any, settings: FedAFDSettings, image_bytes: float) -> dict[str, float]:
        """`up` and `down` of a client that reads both sides, in a round, before a run: features of the public pairs
        both ways, and down the encoders where they are tuned whole."""
        features = 2.0 * 4 * conf.clients.width * (conf.data.public.pairs or 0)
        towers = zip(SIDES, settings.retriever.architecture.split("+"), strict=True)
        sizes = [body_size(conf.clients, side, name, conf.data.image_size) for side, name in towers]
        whole = settings.fusion != "none" and settings.tuned == "all"
        encoders = sum(4 * size.weights for size in sizes if size is not None) if whole else 0.0
        up, down = (features if there else 0.0 for there in (settings.sed, settings.alignment))
        return {"up": up, "down": down + encoders}

    # -- the global encoders and their features ------------------------------------------------------------------------

    def freeze(self) -> None:
        """After round 0, freeze the bodies of the encoders if only the projections are tuned."""
        for encoder in (self.server_model.image, self.server_model.text):
            encoder.body.requires_grad_(self.settings.tuned == "all")

    def features(self, r: int) -> dict[str, Tensor]:
        """[N, D] of both sides, clean and in evaluation mode, or as the released code takes them (D7, D8)."""
        d, images, texts = self.settings.divergences, self.public.images, self.public.texts
        if not d.same_view:
            images, texts = other_view(images, texts, seeds.generator(self.seed, "public view", r))
        if d.eval_mode:
            return self.retriever.features(images, texts)
        self.server_model.train()
        with torch.no_grad(), seeds.scoped(self.seed, "public features", r):
            parts = [
                self.server_model(*self.retriever.inputs(images, texts, rows))
                for rows in torch.arange(len(images)).split(self.settings.retriever.batch)
            ]
        return {side: torch.cat([p[n].cpu() for p in parts]) for n, side in enumerate(SIDES)}

    def spread(self, federation: Federation) -> dict[str, float]:
        """Send each client the encoders of its modality, or only the tensors that changed since the last time."""
        if self.settings.fusion == "none":
            return {}
        state = self.retriever.state()
        parts = {side: named(side, part(state, side)) for side in SIDES}
        whole = {c.id: {n: t for side in sides_of(c) for n, t in parts[side].items()} for c in federation.cohort}
        payloads = {c.id: self.sent.to(c.id, whole[c.id]) for c in federation.cohort}
        for reply in federation.ask("represent", lambda client: payloads[client.id], Report):
            self.sent.arrived(reply.client.id)
        self.steps["encoders"].add(federation.step)
        sizes = [sum(t.numel() * t.element_size() for t in w.values()) for w in whole.values()]
        return {"bytes/encoders_whole": sum(sizes) / len(sizes)}

    # -- aggregation (section 5) and distillation (section 6) ----------------------------------------------------------

    def ask_features(self, federation: Federation, clients: list[Client]) -> list[Reply]:
        """Ask for the clients' unit features of all pairs. A reply without a side that its client has is refused."""

        def whole(client: Client, body: Features) -> None:
            for side in SIDES:
                found, expected = getattr(body, side), self.width if side in sides_of(client) else 0
                if found.shape[1] != expected:
                    raise WireError(f"Features.{side} is {found.shape[1]} wide, expected {expected} of this client")
                if expected and found.norm(dim=1).amax().item() > UNIT:
                    raise WireError(f"Features.{side} has a vector longer than one")

        P = self.public
        replies = federation.ask(
            "represent",
            PublicSet(P.order, P.ids),
            Features,
            ids=P.ids,
            check=whole,
            bounds={"N": len(P)},
            clients=clients,
        )
        self.steps["features"].add(federation.step)
        return replies

    def aggregated(
        self, replies: list[Reply], global_ND: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The aggregation: i_agg and t_agg [N, D], the similarity-weighted means of the clients' features, and metrics.

        A side that no client has is missing. The metrics have each client's mean weight."""
        s, targets, metrics = self.settings, {}, {}
        for side in SIDES:
            mine = [x for x in replies if side in sides_of(x.client)]
            metrics[f"sed/clients_{side}"] = float(len(mine))
            if not mine:
                continue
            reps_KND = torch.stack([getattr(x.body, side) for x in mine])
            anchor_ND = global_ND[side if s.compare == "same" else SIDES[1 - SIDES.index(side)]]
            score_KN = torch.stack([match_scores(x, anchor_ND, s.temperature) for x in reps_KND])  # s^{c,k}
            weight_KN = similarity_weights(score_KN if s.aggregator == "similarity" else score_KN * 0)  # w^{c,k}
            targets[side] = weighted(reps_KND, weight_KN)  # i_agg^k
            metrics |= {
                f"sed/weight_{side}/{x.client.id}": w for x, w in zip(mine, weight_KN.mean(1).tolist(), strict=True)
            }
            metrics |= {
                f"sed/score_{side}": score_KN.mean().item(),
                f"sed/length_{side}": targets[side].norm(dim=1).mean().item(),
            }
        return targets, metrics

    def distill(self, targets: dict[str, Tensor], rounds: tuple[int, int]) -> dict[str, float]:
        """L_kd: the student's live features against the aggregated ones, gamma times."""
        s, P = self.settings, self.public

        def terms(rows: Tensor) -> dict[str, Tensor]:
            own = dict(zip(SIDES, self.server_model(*self.retriever.inputs(P.images, P.texts, rows)), strict=True))
            return {
                f"kd_{side}": s.distillation * apart(own[side], target[rows].to(own[side].device), s.divergences.kd)
                for side, target in targets.items()
            }

        epochs = s.retriever.kd_epochs if targets and s.distillation else 0
        return self.retriever.passes(terms, len(P), epochs, rounds, "distill")

    # -- figures and checkpoint ----------------------------------------------------------------------------------------

    def bytes_apart(self, federation: Federation) -> dict[str, float]:
        """Measured bytes of the encoders and of the features, the mean over the clients asked."""
        figures = {}
        for what, steps in self.steps.items():
            entries = [e for e in federation.ledger if e["round"] == federation.round and e["step"] in steps]
            clients = {e["client"] for e in entries}
            for way in ("down", "up") if clients else ():
                figures[f"bytes/{what}_{way}_per_client"] = sum(e[way] for e in entries) / len(clients)
        return figures

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.retriever.state(), {"sent": self.sent.state()}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.retriever.restore(tensors)
        self.sent.restore(meta["sent"])


def apart(own_BD: Tensor, target_BD: Tensor, form: str) -> Tensor:
    """mse: mean over batch and width, the released code's; l2: mean distance, the paper's."""
    return mse_loss(own_BD, target_BD) if form == "mse" else (own_BD - target_BD).norm(dim=1).mean()


def client_metrics(replies: list[Reply]) -> dict[str, float]:
    """The clients' metrics: the mean of each over the clients that report it, and how many discriminators collapsed."""
    bodies = [x.body.metrics for x in replies]
    names = list(dict.fromkeys(name for b in bodies for name in b))
    means = {f"train/{n}": sum(b[n] for b in bodies if n in b) / sum(n in b for b in bodies) for n in names}
    collapsed = {x.client.id: x.body.metrics["baa/collapsed"] for x in replies if "baa/collapsed" in x.body.metrics}
    means |= {f"baa/collapsed/{k}": v for k, v in collapsed.items()}
    return means | ({"baa/collapsed": sum(collapsed.values())} if collapsed else {})
