"""Differential privacy at the client: what a phase made is protected before it is sent, whatever the method.

The noise is named by a secret that never leaves the client's memory: a message that is asked again, or a round that is
resumed, is answered with the same noise and spends nothing more. Axes: N samples, D width.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import torch

from client_app.memory import Memory
from florilegium import seeds
from florilegium.config.settings import Settings
from florilegium.privacy import coverage, mechanisms
from florilegium.privacy.accountants import Accountant
from florilegium.privacy.mechanisms import PrivacyError
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
        self.touched = False

    @cached_property
    def spent(self) -> dict[str, Accountant]:
        """By mechanism: all that this client has released in this arm, up to this message."""
        found = self.client.memory.read(PART)
        return {name: Accountant(history) for name, history in (found[1] if found else {}).items()}

    def noise(self, *names: object) -> torch.Generator:
        """Where this message's noise comes from."""
        source = self.client.seed("privacy") if self.settings.seeded else self.secret
        return seeds.generator(source, *self.client.memory.now, *names)

    @property
    def secret(self) -> str:
        """This client's own, drawn once from the machine's randomness."""
        if (kept := self.client.memory.kept(SECRET)) is None:
            self.client.memory.keep(SECRET, {"of": torch.tensor([self.client.id])}, {"secret": mechanisms.secret()})
            kept = self.client.memory.kept(SECRET)
        if kept is None:
            raise PrivacyError("the memory does not keep the secret that noise is drawn from")
        return str(kept[1]["secret"])

    def spend(self, mechanism: str, noise: float, times: int, rate: float = 1.0) -> None:
        """Enter a mechanism's releases: noise over sensitivity, how often, on which sampled share of the rows."""
        self.spent.setdefault(mechanism, Accountant()).add(noise, times, rate)
        self.touched = True

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
                noisy_ND = mechanisms.gaussian(x_ND, s, self.noise("gaussian", f.name))
                made[f.name] = returned(noisy_ND, f.metadata, self.client.width)
                self.spend("gaussian", s.multiplier, x_ND.numel() // x_ND.shape[-1])
        return replace(up, **made) if made else up

    def save(self) -> None:
        """Remember what was spent, if this message spent anything."""
        if self.touched:
            self.client.memory.write(
                PART,
                {"round": torch.tensor([self.client.round])},
                {name: kept.history for name, kept in self.spent.items()},
            )

    def figures(self) -> dict[str, float]:
        """Epsilon of each mechanism over everything so far; for the Gaussian also of a single row."""
        delta, s = self.settings.delta, self.settings.representations
        out = {name: kept.epsilon(delta) for name, kept in self.spent.items()}
        if s is not None and "gaussian" in out:
            out["gaussian_row"] = Accountant().add(s.multiplier).epsilon(delta)
        return out
