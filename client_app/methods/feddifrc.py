"""FedDifRC, client side (arXiv 2507.06482). Server side: FedAvg's, strategies/fedavg.py.

Down and up: weights; once, down, the shared projection. The frozen diffusion model looks at the client's rows where
they are. Axes: B batch, N rows, K negatives, Q = 2 + K features of a row, D width, W token width.
Forms, sources and every free choice: docs/methods/feddifrc.md.
"""

from __future__ import annotations

from client_app.methods.fedavg import FedAvgClient


class FedDifRCClient(FedAvgClient):
    """L = L_TDCL + L_NDCR + L_CE from the server's weights; the terms are the guide's."""
