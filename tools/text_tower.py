"""One text encoder in two standard forms: open_clip's text tower and transformers' CLIPTextModel."""

import torch
from transformers import CLIPTextConfig, CLIPTextModel

NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def text_model(state: dict[str, torch.Tensor], text_cfg: dict) -> CLIPTextModel:
    """The CLIPTextModel with the weights of an open_clip state dict: same hidden states, token for token."""
    end = text_cfg["vocab_size"] - 1
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=text_cfg["vocab_size"],
            hidden_size=text_cfg["width"],
            intermediate_size=int(text_cfg["width"] * text_cfg["mlp_ratio"]),
            num_hidden_layers=text_cfg["layers"],
            num_attention_heads=text_cfg["heads"],
            max_position_embeddings=text_cfg["context_length"],
            projection_dim=text_cfg["width"],
            hidden_act="gelu",
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    named = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "final_layer_norm.weight": state["ln_final.weight"],
        "final_layer_norm.bias": state["ln_final.bias"],
    }
    for layer in range(text_cfg["layers"]):
        ours, theirs = f"transformer.resblocks.{layer}.", f"encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            joined = state[f"{ours}attn.in_proj_{kind}"].chunk(3)
            for name, value in zip("qkv", joined, strict=True):
                named[f"{theirs}self_attn.{name}_proj.{kind}"] = value
            for source, target in NAMES.items():
                named[f"{theirs}{target}.{kind}"] = state[f"{ours}{source}.{kind}"]
    model.load_state_dict(named)
    return model.eval()
