"""CreamFL, client side (arXiv 2302.08888). Server side: strategies/representations/creamfl.py.

Down: the server's features of public pairs. Up: this client's features of them. Private data and weights stay.
Axes: N pairs, B batch, D width. Sources and every free choice: docs/methods/representations.md.
"""

from __future__ import annotations

from torch import Tensor

from client_app.batches import ClientError
from client_app.blocks.representing import Codes, RepresentingClient, learn, recalled, seen
from client_app.client import Client
from florilegium.config.fields import section, setting
from florilegium.learning.fit import LearningRate
from florilegium.learning.losses import info_nce, model_contrast
from florilegium.protocol.payloads import Features, Nothing, Report

BEFORE = "before"  # the part of the memory that holds the model as the last round left it
OTHER = {"image": "text", "text": "image"}


@section
class CreamFLClientSettings:
    """Client settings of CreamFL. "Our choice" marks what our notes on the released code do not say."""

    inter: bool = setting(True, "inter-modal contrast: with the server's features of the other modality")
    intra: bool = setting(
        True,
        "intra-modal contrast, as MOON's: towards the server's features of the same modality, away from the "
        "client's last",
    )
    contrast: float = setting(0.5, "weight of each of the two contrasts", low=0, high=1e4)
    temperature: float = setting(0.5, "temperature of both contrasts", low=1e-3, high=1e3)
    public_set: str = setting(
        "proxy",
        "as the server has it: proxy (the client has its own copy) | synthetic (samples come down); set it by "
        "method.public_set",
        choices=("proxy", "synthetic"),
    )
    pretrain_epochs: int = setting(
        12, "private epochs at a client's first training (our choice)", low=0, high=1_000_000
    )
    local_epochs: int = setting(1, "private epochs of a round; 5 in the released code", low=0, high=1_000_000)
    contrast_epochs: int = setting(1, "passes over the public pairs in a round", low=0, high=1_000_000)
    mix_private: bool = setting(
        True,
        "learn a private batch beside each public batch, as FedMMKT's clients do (our choice); false is the "
        "literal reading",
    )
    learning_rate: LearningRate = setting(help="learning rate of AdamW", factory=LearningRate)
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0, high=10)
    batch: int = setting(32, "private rows in a batch", low=2, high=100_000)
    public_batch: int = setting(64, "public pairs in a batch; 128 in the released code", low=2, high=100_000)


class CreamFLClient(RepresentingClient):
    """Learns its task, then where public pairs lie in the server's space, and says where it sees them itself."""

    Settings = CreamFLClientSettings

    def train(self, client: Client, _: Nothing) -> Nothing:
        client.memory.write(BEFORE, client.model.state_dict())
        return super().train(client, _)

    def distill(self, client: Client, down: Features) -> Report:
        """Local representation learning with inter- and intra-modal contrasts."""
        s, inputs = self.settings, recalled(client, down)
        global_ = {"image": down.image.to(client.device), "text": down.text.to(client.device)}
        if any(g.shape[1] not in (0, client.width) for g in global_.values()):
            raise ClientError(
                f"the server's features are {down.image.shape[1]} and {down.text.shape[1]} wide,"
                f" representations {client.width}"
            )
        if not (s.inter or s.intra) or not s.contrast or len(down.ids) < 2:
            return Report({}, len(down.ids))
        before = self.before(client, inputs) if s.intra else {}

        def terms(rows: Tensor, codes: Codes) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for side, (z_BD, _) in codes.items():
                g_ND, other_ND = global_[side], global_[OTHER[side]]
                if s.inter and other_ND.shape[1]:
                    found[f"inter_{side}"] = s.contrast * info_nce(z_BD, other_ND, rows.to(z_BD.device), s.temperature)
                if s.intra and g_ND.shape[1]:
                    found[f"intra_{side}"] = s.contrast * model_contrast(
                        z_BD, g_ND[rows], before[side][rows], s.temperature
                    )
            return found

        return Report(learn(client, s, inputs, terms, s.contrast_epochs), len(down.ids))

    @staticmethod
    def before(client: Client, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the model of the last round saw in the pairs, [N, D] a side."""
        kept = client.memory.read(BEFORE)
        if kept is None:
            raise ClientError("features came before any training")
        now = {name: value.clone() for name, value in client.model.state_dict().items()}
        client.model.load_state_dict(kept[0])
        found = {side: z.to(client.device) for side, (z, _) in seen(client, inputs).items()}
        client.model.load_state_dict(now)
        return found
