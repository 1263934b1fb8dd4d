"""Text bodies: BERT, DistilBERT, RoBERTa; the representation is the first token's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from florilegium.models.bodies import Body
from florilegium.models.image import known, pretrained_net
from florilegium.models.pretrained import taken_training
from florilegium.models.tokens import Vocabulary

KINDS = {"bert": "Bert", "distilbert": "DistilBert", "roberta": "Roberta"}


class TextBody(Body):
    """int64 token ids [B, T] -> [B, H]; padding is what equals the vocabulary's pad id."""

    def __init__(self, architecture: str, given: dict[str, Any], vocabulary: Vocabulary) -> None:
        import transformers  # here: settings are checked without it

        super().__init__()
        kind, given, self.pad = KINDS[architecture], dict(given), vocabulary.pad
        pretrained = given.pop("pretrained", None)
        config_class, model_class = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}Model")
        extra = {} if architecture == "distilbert" else {"add_pooling_layer": False}
        if pretrained:
            how = taken_training(given)
            self.net = pretrained_net(model_class, pretrained, how, {**extra, **given})
        else:
            # RoBERTa counts positions from pad + 1
            given |= {
                "vocab_size": vocabulary.size,
                "pad_token_id": vocabulary.pad,
                "max_position_embeddings": vocabulary.longest + vocabulary.pad + 1,
            }
            self.net = model_class(known(config_class, given), **extra)
        self.hidden = int(self.net.config.hidden_size)
        self.whole_mask = False  # give attention its mask as it is used: transformers need not look into the values

    def forward(self, ids_BT: Tensor) -> Tensor:
        mask = (ids_BT != self.pad).long()
        if self.whole_mask:
            mask = mask[:, None, None].bool().expand(-1, 1, ids_BT.shape[1], -1)  # [B, heads, T, T]
        return self.net(input_ids=ids_BT, attention_mask=mask).last_hidden_state[:, 0]
