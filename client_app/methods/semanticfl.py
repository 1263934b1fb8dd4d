"""SemanticFL, client side (arXiv 2603.19337). Server side: FedAvg's, strategies/fedavg.py.

Down and up: weights; once, down, a student of the diffusion model (or anchors), texts, and features for the head's
replay. No client runs the diffusion model (but with source private_local).
Forms, sources and every free choice: docs/methods/semanticfl.md.
"""

from __future__ import annotations

from client_app.methods.fedavg import FedAvgClient


class SemanticFLClient(FedAvgClient):
    """L = L_CE + lambda_kd (1 - cos(z, student(x))) + lambda_con L_con + rho L_replay; the terms are the guide's."""
