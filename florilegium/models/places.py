"""Where small modules go in a body, and one name for the same place in all architectures.

The place of a transformer layer is named by its number and its role, such as `3.query`; a place of any other kind keeps
the body's own name. So clients of different architectures agree on the names of what they exchange.
"""

from __future__ import annotations

import re

from torch import nn

from florilegium.models.bodies import Classifier, ModelError

BODY = "body.net."
#: role in a transformer layer -> how the architectures of transformers call it
ROLES = {
    "query": r"attention\.(?:q_proj|self\.query|q_lin)",
    "key": r"attention\.(?:k_proj|self\.key|k_lin)",
    "value": r"attention\.(?:v_proj|self\.value|v_lin)",
    "attended": r"attention\.(?:o_proj|output\.dense|out_lin)",
    "inner": r"mlp\.fc1|ffn\.lin1|intermediate\.dense",
    "output": r"mlp\.fc2|ffn\.lin2|output\.dense",
}
ROLE = "|".join(f"(?P<{role}>{names})" for role, names in ROLES.items())
IN_LAYER = re.compile(rf"(?:^|\.)layers?\.(\d+)\.(?:{ROLE})$")
CONVOLUTION = re.compile(r"stages\.\d+\.layers\.\d+\.layer\.\d+\.convolution$")


def place_of(module: str) -> str:
    """The common name of a module of a body, by its own name in the model."""
    found = IN_LAYER.search(module)
    return f"{found[1]}.{found.lastgroup}" if found else module.removeprefix(BODY)


def attention_places(model: Classifier) -> dict[str, str]:
    """Place -> name in the model, of every query and value projection; of a ResNet, of every convolution of a residual
    layer. ModelError for a body that has neither."""
    found = {place_of(name): name for name in _modules(model)}
    chosen = {place: name for place, name in found.items() if place.split(".")[-1] in ("query", "value")}
    return chosen or _convolutions(model)


def output_places(model: Classifier) -> dict[str, str]:
    """Place -> name in the model, of the last linear map of every transformer layer; of a ResNet, of the last
    convolution of every residual layer. ModelError for a body that has neither."""
    found = {place_of(name): name for name in _modules(model)}
    if chosen := {place: name for place, name in found.items() if place.split(".")[-1] == "output"}:
        return chosen
    last = {name.rsplit(".layer.", 1)[0]: (place, name) for place, name in _convolutions(model).items()}
    return dict(last.values())


def _modules(model: Classifier) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.startswith(BODY)]


def _convolutions(model: Classifier) -> dict[str, str]:
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and CONVOLUTION.search(name)]
    if not names:
        raise ModelError("this architecture has no place for modules: they go into transformers and residual networks")
    return {place_of(name): name for name in names}
