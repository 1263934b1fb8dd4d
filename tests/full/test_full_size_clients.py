"""Each experiment's clients are built at their full size on the meta device, where weights take no memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
import yaml

from florilegium.config import composition
from florilegium.models import build, image, text
from florilegium.models.sizes import PAPERS
from florilegium.models.tokens import Vocabulary
from tests.full.test_experiments import EXPERIMENTS

HUB = {  # config.json of the checkpoints that conf/architectures/full.yaml names, where it differs from the class's own
    "microsoft/resnet-18": transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    ),
    "google/vit-base-patch32-224-in21k": transformers.ViTConfig(patch_size=32),
    "microsoft/beit-base-patch16-224": transformers.BeitConfig(
        use_relative_position_bias=True, use_mask_token=False, use_absolute_position_embeddings=False
    ),
    "bert-base-uncased": transformers.BertConfig(),
    "distilbert-base-uncased": transformers.DistilBertConfig(),
    "roberta-base": transformers.RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
}
TOKENS, CLASSES = 128, 102
# a ResNet-10: stem 9,536, stages 73,984 + 230,144 + 919,040 + 3,673,088; the projection; 102 classes on 512 numbers
RESNET_10 = 9_536 + 73_984 + 230_144 + 919_040 + 3_673_088 + 512 * 513 + 102 * 513


def groups() -> dict[str, str]:
    """{group of clients: an experiment that takes it}."""
    found: dict[str, str] = {}
    for name in EXPERIMENTS:
        given = yaml.safe_load(Path(composition.CONF, "experiment", f"{name}.yaml").read_text())
        taken = {key: value for line in given["defaults"] for key, value in line.items()}
        assert set(given.get("clients", {})) <= {"partition"}, f"{name} has models of its own: list it here"
        found.setdefault(taken["override /clients"], name)
    return found


def weights(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture
def hub(monkeypatch):
    """Checkpoints of the hub by their configurations alone."""

    def made(model_class, name, how, given):
        return model_class(HUB[name], **given)

    for module in (image, text):
        monkeypatch.setattr(module, "pretrained_net", made)
    monkeypatch.setattr(image, "preprocessing", lambda name: {})


@pytest.mark.parametrize("group, name", groups().items())
def test_clients_are_built_at_full_size(group, name, hub) -> None:
    clients = composition.compose([f"experiment={name}"]).clients
    members = {(m.modality, m.model) for m in clients.mix}
    if name.startswith("fedafd/"):  # the one whose server has encoders of full size
        members.add(("pair", clients.server))
    reads = Vocabulary(lambda said: [1], 30522, 0, TOKENS)
    pixels, ids = torch.zeros(2, 3, 64, 64, device="meta"), torch.ones(2, TOKENS, dtype=torch.int64, device="meta")
    for modality, model in sorted(members):
        with torch.device("meta"), torch.no_grad():
            made = build.build(clients, modality, model, CLASSES, reads)
            for part in made.modules():
                if isinstance(part, text.TextBody):
                    part.whole_mask = True  # values of a mask cannot be looked at here
            if modality == "pair":
                shapes = [made.encode_image(pixels).shape, made.encode_text(ids).shape]
                assert shapes == [(2, clients.width)] * 2, (group, model)
            else:
                assert made(pixels if modality == "image" else ids).shape == (2, CLASSES), (group, model)
        assert all(p.device.type == "meta" for p in made.parameters())
        known = [PAPERS.get(clients.architectures[part].get("pretrained"), (None,))[0] for part in model.split("+")]
        if None in known:
            assert group == "feddifrc_ten" and weights(made) == RESNET_10
        else:
            nets = [part for part in made.modules() if isinstance(part, (image.ImageBody, text.TextBody))]
            assert [weights(net) for net in nets] == pytest.approx([1e6 * millions for millions in known], rel=0.01)
