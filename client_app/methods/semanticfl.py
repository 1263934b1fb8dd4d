"""SemanticFL, client side (arXiv 2603.19337). Server side: FedAvg's, strategies/fedavg.py.

Down and up: weights; once, down, anchors that the server extracted. No client runs the diffusion model (but with
source private_local). Axes: B batch, C classes, P anchors of a class, D width, W text width.
Forms, sources and every free choice: docs/methods/semanticfl.md.
"""

from __future__ import annotations

from client_app.methods.fedavg import FedAvgClient


class SemanticFLClient(FedAvgClient):
    """L = L_CE + lambda_kd KL(softmax(V) || softmax(z)) + lambda_con L_con; the terms are the guide's."""
