"""Differential privacy at the client: what a phase made is protected before it is sent, whatever the method.

The noise is named by a secret that never leaves the client's memory and by what is asked and answered: a message that
is asked again, or a round that is resumed, gets the same noise and spends nothing more. Another question for the same
round gets noise of its own, so two answers differ by noise as well, and it spends. Axes: N samples, D width.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import torch

from client_app.memory import Memory
from florilegium import seeds
from florilegium.config.instances import to_plain
from florilegium.config.settings import Settings, lasting
from florilegium.privacy import coverage, mechanisms
from florilegium.privacy.accountants import Accountant
from florilegium.privacy.mechanisms import PrivacyError
from florilegium.protocol.deltas import version_of
from florilegium.protocol.fields import VECTOR, holding
from florilegium.protocol.vectors import returned

PART, SECRET = "privacy", "secret"  # of the memory


class Protected(Protocol):
    """What protection must know of a client: who it is, which round it is, its settings, memory and seeds."""

    conf: Settings
    id: int
    round: int
    width: int
    memory: Memory

    def seed(self, *names: object) -> int: ...


class Protection:
    """The mechanisms of one client's message, and the accountants it keeps over the rounds."""

    def __init__(self, client: Protected) -> None:
        self.client = client
        self.settings = client.conf.privacy
        self.asked = ""  # a digest of the question, by `digest_of_question`
        self.paid_now: set[str] = set()  # the releases that this message spends

    @cached_property
    def account(self) -> dict[str, Any]:
        """`spent`: the history of each mechanism; `paid`: the releases that it counts, by their digests.

        It is no version of a round: who asks for an earlier round again does not make the client forget. PrivacyError
        where it cannot be read.
        """
        memory = self.client.memory
        if (found := memory.kept(PART)) is not None:
            return found[1]
        if memory.keeps(PART):
            raise PrivacyError(f"the account of what was spent cannot be read ({memory.folder})")
        older = memory.read(PART)  # of a run that was begun when the account was kept by round
        return {"spent": older[1] if older else {}, "paid": []}

    @cached_property
    def spent(self) -> dict[str, Accountant]:
        """By mechanism: all that this client has released in this arm."""
        return {name: Accountant(history) for name, history in self.account["spent"].items()}

    @cached_property
    def paid(self) -> frozenset[str]:
        """The releases of earlier messages."""
        return frozenset(self.account["paid"])

    def noise(self, content: str, *names: object) -> torch.Generator:
        """Where the noise on something comes from, of which `content` is a digest before the noise.

        Equal for a message that is asked again, new for everything else: also where the same question meets another
        model.
        """
        when = self.client.memory.now
        if self.settings.seeded:
            return seeds.generator(self.client.seed("privacy"), *when, *names)
        return seeds.generator(self.secret, *when, self.asked, content, *names)

    @property
    def secret(self) -> str:
        """This client's own, drawn once from the machine's randomness."""
        if (kept := self.client.memory.kept(SECRET)) is None:
            self.client.memory.keep(SECRET, {"of": torch.tensor([self.client.id])}, {"secret": mechanisms.secret()})
            kept = self.client.memory.kept(SECRET)
        if kept is None:
            raise PrivacyError("the memory does not keep the secret that noise is drawn from")
        return str(kept[1]["secret"])

    def spend(self, mechanism: str, content: str, noise: float, times: int, rate: float = 1.0) -> None:
        """Enter a mechanism's releases: noise over sensitivity, how often, on which sampled share of the rows.

        `content` as in `noise`. What an earlier message paid for, with the same question and answer, is not paid again.
        """
        told = json.dumps([mechanism, *self.client.memory.now, self.asked, content])
        release = hashlib.sha256(told.encode()).hexdigest()[:32]
        if release not in self.paid:
            self.spent.setdefault(mechanism, Accountant()).add(noise, times, rate)
            self.paid_now.add(release)

    def may_train(self, method: str, covered: bool) -> None:
        """PrivacyError for a method whose passes over private rows DP-SGD does not cover, where it is asked for."""
        if self.settings.training and not covered:
            raise PrivacyError(
                f"{coverage.TRAINING}: {method} reads private rows in ways of its own, which DP-SGD does not cover"
            )

    def upload(self, up: Any) -> Any:
        """`up` as it may leave. PrivacyError, naming payload and field, for what no mechanism that is on covers."""
        if refused := coverage.refused_upload(up, self.settings):
            self.save()  # what training spent is spent, whether its result leaves or not
            raise PrivacyError(refused)
        up = self.noised(self.without_figures(up))
        self.save()
        return up

    def without_figures(self, up: Any) -> Any:
        """`up` without the figures that the settings do not let leave."""
        kept = coverage.withheld(self.settings)
        return replace(up, **{f.name: {} for f in holding(up, *kept)}) if kept else up

    def noised(self, up: Any) -> Any:
        """Every row of the vectors that `up` declares through the Gaussian mechanism, then back to the wire's range.

        The way back costs no privacy.
        """
        s = self.settings.representations
        if s is None:
            return up
        made = {}
        for f in holding(up, VECTOR):
            x_ND = getattr(up, f.name)
            if x_ND.numel():
                content = version_of({f.name: x_ND})
                noisy_ND = mechanisms.gaussian(x_ND, s, self.noise(content, "gaussian", f.name))
                made[f.name] = returned(noisy_ND, f.metadata, self.client.width)
                self.spend("gaussian", content, s.multiplier, x_ND.numel() // x_ND.shape[-1])
        return replace(up, **made) if made else up

    def save(self) -> None:
        """Remember what was spent, if this message spent anything."""
        if self.paid_now:
            spent = {name: kept.history for name, kept in self.spent.items()}
            told = {"spent": spent, "paid": sorted(self.paid | self.paid_now)}
            self.client.memory.keep(PART, {"round": torch.tensor([self.client.round])}, told)

    def figures(self) -> dict[str, float]:
        """Epsilon of each mechanism over everything so far; for the Gaussian also of a single row."""
        delta, s = self.settings.delta, self.settings.representations
        out = {name: kept.epsilon(delta) for name, kept in self.spent.items()}
        if s is not None and "gaussian" in out:
            out["gaussian_row"] = Accountant().add(s.multiplier).epsilon(delta)
        return out


def digest_of_question(conf: Settings, settings: Any, content: str) -> str:
    """A digest of what the server asks: the message's `content` (its own digest), the run's settings that stay when it
    is resumed, and the `settings` of the method's client side. 32 hex digits."""
    told = {key: value for key, value in lasting(conf.plain()).items() if key not in ("method", "references")}
    text = json.dumps([told, to_plain(settings), content], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
