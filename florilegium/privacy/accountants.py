"""How much privacy has been spent, composed in Renyi differential privacy by opacus."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from florilegium.config.privacy import Votes
from florilegium.privacy.mechanisms import EXTRA, PrivacyError

ORDERS = [
    *(1 + x / 100 for x in range(1, 10)),
    *(1 + x / 10 for x in range(1, 100)),
    *range(11, 64),
    128,
    256,
    512,
    1024,
]  # of the Renyi divergence; the least epsilon among them counts


# -- accounting ------------------------------------------------------------------------------------------------------


class Accountant:
    """What has been spent: Gaussian mechanisms (noise over sensitivity, sampling rate, times), composed in Renyi
    differential privacy (Mironov 2017) by opacus. `history` is JSON-able."""

    def __init__(self, history: Iterable[Any] = ()) -> None:
        self.history = [(float(noise), float(rate), int(times)) for noise, rate, times in history]

    def add(self, noise: float, times: int = 1, rate: float = 1.0) -> Accountant:
        """Spend a mechanism `times` more; `rate` below one: on a Poisson sample of the rows."""
        if times:
            before = sum(n for s, q, n in self.history if (s, q) == (noise, rate))
            self.history = [h for h in self.history if h[:2] != (noise, rate)] + [(noise, rate, before + times)]
        return self

    def epsilon(self, delta: float) -> float:
        """The epsilon of everything so far; 0 before anything. PrivacyError without opacus."""
        if not self.history:
            return 0.0
        accountant = opacus_accountant()
        accountant.history = list(self.history)
        found = float(accountant.get_epsilon(delta, alphas=ORDERS))
        return max(found, 0.0) if math.isfinite(found) else 1e9


def opacus_accountant() -> Any:
    """An RDP accountant. PrivacyError when opacus is not installed."""
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise PrivacyError(EXTRA) from error
    return RDPAccountant()


def votes_spent(settings: Votes, asked: int, answered: int, before: Accountant) -> Accountant:
    """Spend Confident-GNMax on `asked` samples, of which `answered` passed.

    Replacing a client's vote changes the largest count by 1 and the counts by sqrt(2) in L2: RDP a / (2 sigma_1^2) and
    a / sigma_2^2 (arXiv 1802.08908, Proposition 8 and Theorem 6's data-independent case).
    """
    before.add(settings.threshold_noise, asked)
    return before.add(settings.noise / math.sqrt(2), answered)
