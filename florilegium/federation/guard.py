"""What stands between the replies of clients and a method: defences against bad clients, privacy of their votes.

One guard an arm. The federation passes every answer through `cleaned`, so no method can forget it; a method that counts
votes adds `votes` and `released`. What it remembers (reputations, what was spent) is in the arm's checkpoint.
Axes: K clients, N samples, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from florilegium import seeds
from florilegium.config.privacy import DefenceSettings, PrivacySettings
from florilegium.federation import robust
from florilegium.privacy import accountants, coverage, mechanisms
from florilegium.privacy.accountants import Accountant
from florilegium.privacy.mechanisms import PrivacyError
from florilegium.protocol.fields import LABEL, VECTOR, holding, names_classes, scores_classes
from florilegium.protocol.validation import WireError
from florilegium.protocol.vectors import clamped


class Guard:
    """Defences and vote privacy of one arm, and what its clients say they have spent."""

    def __init__(
        self,
        defence: DefenceSettings | None = None,
        privacy_: PrivacySettings | None = None,
        classes: int = 0,
        seed: int = 0,
    ) -> None:
        self.defence, self.privacy = defence or DefenceSettings(), privacy_ or PrivacySettings()
        self.classes = classes
        self.reputation: dict[int, float] = {}  # of clients, by id; unknown: 1
        self.spent_by: dict[int, dict[str, float]] = {}
        self.counted = Accountant()
        self.releases = 0
        self.secret = str(seed) if self.privacy.seeded else mechanisms.secret()
        self.cut = 0.0  # share of the votes that were bounded, of the last count

    @classmethod
    def of(cls, resources: Any) -> Guard:
        """The guard that a run's settings ask for. SettingsError."""
        conf = getattr(resources, "conf", None)
        if conf is None:
            return cls()
        return cls(
            conf.defence,
            conf.privacy,
            len(resources.classes),
            conf.seed,
        )

    # -- what may cross ----------------------------------------------------------------------------------------------

    def may_ask(self, kinds: Sequence[type]) -> None:
        """PrivacyError, naming payload and field, for an answer that the defence which is on does not cover."""
        if not self.defence.active:
            return
        for kind in kinds:
            if refused := coverage.undefended(kind):
                raise PrivacyError(refused)

    def may_send(self, body: Any) -> None:
        """PrivacyError, naming payload and field, for what would tell clients more than `privacy.votes` lets out."""
        if refused := coverage.refused_download(body, self.privacy):
            raise PrivacyError(refused)

    # -- defences ----------------------------------------------------------------------------------------------------

    def cleaned(self, replies: list[Any]) -> list[Any]:
        """Replies with the vectors that their payloads declare made robust by `defence`; others as they are."""
        if not self.defence.active or not replies:
            return replies
        share = self.shares(replies)
        if self.defence.reputation:
            self.learn(replies, share)
        changed: list[dict[str, Tensor]] = [{} for _ in replies]
        for (name, _, _), members in vectors(replies, self.defence.among).items():
            x_KND = torch.stack([getattr(replies[k].body, name) for k in members])
            spec = spec_of(replies[members[0]].body, name)
            for k, x in zip(members, clamped(self.robust(x_KND, share[members]), spec), strict=True):
                changed[k][name] = x
        return [replace(x, body=replace(x.body, **new)) for x, new in zip(replies, changed, strict=True)]

    def robust(self, x_KND: Tensor, share_K: Tensor) -> Tensor:
        """Vectors [K, N, D] of comparable clients, made robust as set."""
        s = self.defence
        if s.bound is not None:
            x_KND = robust.shortened(x_KND, s.bound)
        if s.centre == "trimmed":
            x_KND = robust.trimmed(x_KND, s.trim)
        elif s.centre == "median":
            x_KND = robust.recentred(x_KND, robust.median_weights(x_KND))
        if s.reputation:
            x_KND = robust.recentred(x_KND, (share_K / share_K.sum())[:, None].expand(x_KND.shape[:2]))
        return x_KND

    def votes(self, weight_KN: Tensor, replies: Sequence[Any]) -> Tensor:
        """The clients' weights in a vote, by reputation and bounded; their sum of a round stays about the same."""
        s = self.defence
        if s.reputation:
            weight_KN = weight_KN * (len(replies) * self.shares(replies))[:, None]
        if s.bound is not None:
            before, weight_KN = weight_KN, robust.capped(weight_KN, s.bound)
            self.cut = (weight_KN < before * (1 - 1e-6)).float().mean().item()
        return weight_KN

    def shares(self, replies: Sequence[Any]) -> Tensor:
        """Shares [K] of one by reputation; equal without."""
        known = torch.tensor([self.reputation.get(x.client.id, 1.0) for x in replies])
        return robust.shares(known, self.defence.sharpness if self.defence.reputation else 0.0)

    def learn(self, replies: Sequence[Any], share_K: Tensor) -> None:
        """Reputations for later rounds: how each client agrees with the consensus of all, by moving average."""
        for members, agreed in agreements(replies, share_K, self.classes):
            for k, value in zip(members, agreed.tolist(), strict=True):
                id_, keep = replies[k].client.id, self.defence.momentum
                self.reputation[id_] = keep * self.reputation.get(id_, 1.0) + (1 - keep) * value

    # -- privacy -----------------------------------------------------------------------------------------------------

    @property
    def protects_votes(self) -> bool:
        """Whether votes may be used only as `released` gives them."""
        return self.privacy.votes is not None

    def released(
        self, label_KN: Tensor, label_N: Tensor, keep_N: Tensor, drawn_N: Tensor | None = None, drawn_votes: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """With `privacy.votes` labels [N] and keep [N] by Confident-GNMax instead; otherwise as they are."""
        s = self.privacy.votes
        if s is None:
            return label_N, keep_N
        prior_NC = None if drawn_N is None or not drawn_votes else drawn_votes * one_hot(drawn_N, self.classes).float()
        random = seeds.generator(self.secret, "votes", self.releases)
        label_N, keep_N = mechanisms.confident_gnmax(label_KN, self.classes, s, random, prior_NC)
        self.releases += 1
        accountants.votes_spent(s, len(keep_N), int(keep_N.sum()), self.counted)
        return label_N, keep_N

    def spent(self, client: int, figures: Mapping[str, float]) -> None:
        """What a client says it has spent so far; a late reply may say less than is known.

        WireError for a figure of a mechanism that is off, or that is not the client's to report, as that of the votes.
        """
        if strange := sorted(figures.keys() - set(self.privacy.reported)):
            raise WireError(f"privacy[{strange[0]}] is not what clients report with these settings")
        if figures:
            known = self.spent_by.get(client, {})
            self.spent_by[client] = known | {k: max(value, known.get(k, 0.0)) for k, value in figures.items()}

    # -- records -----------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """privacy/epsilon/<mechanism>, the largest over the clients and each client's own; reputations."""
        out = {f"defence/reputation_{k}": value for k, value in sorted(self.reputation.items())}
        if self.defence.bound is not None:
            out["defence/votes_bounded"] = self.cut
        out |= {f"privacy/without_noise/{kind}": 1.0 for kind in coverage.released(self.privacy)}
        if self.privacy.votes is not None:
            delta = self.privacy.delta
            out["privacy/epsilon/gnmax"] = self.counted.epsilon(delta)
            out["privacy/epsilon/gnmax_sample"] = accountants.votes_spent(
                self.privacy.votes, 1, 1, Accountant()
            ).epsilon(delta)
        for name in sorted({name for told in self.spent_by.values() for name in told}):
            each = {k: told[name] for k, told in sorted(self.spent_by.items()) if name in told}
            out[f"privacy/epsilon/{name}"] = max(each.values())
            out |= {f"privacy/epsilon/{name}/{k}": value for k, value in each.items()}
        return out

    def state(self) -> dict[str, Any]:
        """JSON-able; `restore` goes on exactly."""
        return {
            "reputation": {str(k): v for k, v in self.reputation.items()},
            "releases": self.releases,
            "spent": {str(k): v for k, v in self.spent_by.items()},
            "counted": self.counted.history,
            "secret": self.secret if self.privacy.votes is not None else "",
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.reputation = {int(k): float(v) for k, v in state.get("reputation", {}).items()}
        self.spent_by = {int(k): dict(v) for k, v in state.get("spent", {}).items()}
        self.counted, self.releases = Accountant(state.get("counted", ())), int(state.get("releases", 0))
        self.secret = state.get("secret") or self.secret


def spec_of(body: Any, name: str) -> Mapping[str, Any]:
    """What a payload declares of its vectors `name`."""
    return next(f.metadata for f in holding(body, VECTOR) if f.name == name)


def vectors(replies: Sequence[Any], among: str = "all") -> dict[tuple[str, str, int], list[int]]:
    """(field, modality, width) -> positions of the replies that have such vectors; only where there are two or more.

    The modality is empty where all clients are compared; the sides of pairs are fields of their own.
    """
    groups: dict[tuple[str, str, int], list[int]] = {}
    for k, reply in enumerate(replies):
        for f in holding(reply.body, VECTOR):
            x = getattr(reply.body, f.name)
            if x.numel():
                side = reply.client.modality if among == "modality" else ""
                groups.setdefault((f.name, side, x.shape[1]), []).append(k)
    return {key: members for key, members in groups.items() if len(members) > 1}


def agreements(replies: Sequence[Any], share_K: Tensor, classes: int) -> list[tuple[list[int], Tensor]]:
    """(positions, agreement in [0, 1] of each): by labels where replies say them, else by the likeness of vectors."""
    labels = {k: said for k, x in enumerate(replies) if (said := labels_in(x.body)) is not None}
    found = []
    if len(labels) > 1:
        members = list(labels)
        found.append((members, robust.agreement(torch.stack(list(labels.values())), share_K[members], classes)))
    for (name, _, _), members in vectors(replies).items():
        if not labels.keys() & set(members):
            x_KND = torch.stack([getattr(replies[k].body, name) for k in members])
            found.append((members, robust.likeness(x_KND, share_K[members] / share_K[members].sum())))
    return found


def labels_in(body: Any) -> Tensor | None:
    """The classes [N] that a reply names, or those of its highest class scores; None where it has neither."""
    for f in holding(body, LABEL, VECTOR):
        x = getattr(body, f.name)
        if len(x) and names_classes(f):
            return x
        if len(x) and scores_classes(f):
            return x.argmax(-1)
    return None
