"""Nets of which a part never trains. That part is the checkpoint's own at every client, so no state dict has it.

What is in no state dict neither crosses the wire nor lies in a client's memory. This holds for every method, and the
sizes that `florilegium privacy` lists are true. A state dict that has the frozen tensors all the same can be loaded.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def omit_frozen(net: nn.Module) -> None:
    """From now on `net.state_dict()` has only the tensors that train, and loading needs only these.

    Frozen are the parameters that do not train now, and every buffer: call it after `requires_grad_`. A frozen
    parameter that is made trainable later is in the state dict again.
    """
    net.frozen_names = frozenset(net.state_dict()) - frozenset(trained_parameters(net))  # type: ignore[assignment]
    net.register_state_dict_post_hook(_without_frozen)
    net.register_load_state_dict_pre_hook(_with_frozen)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by their names."""
    return {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}


def stand_still(net: nn.Module) -> None:
    """Batch norm of frozen layers uses the checkpoint's statistics and does not count new ones."""
    frozen = _frozen_now(net)
    for name, layer in net.named_modules():
        if isinstance(layer, _BatchNorm) and f"{name}.running_mean" in frozen and not trained_parameters(layer):
            layer.eval()


def _frozen_now(net: nn.Module) -> frozenset[str]:
    return getattr(net, "frozen_names", frozenset()) - frozenset(trained_parameters(net))


def _without_frozen(net: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in _frozen_now(net):
        state.pop(f"{prefix}{name}", None)


def _with_frozen(net: nn.Module, state: dict[str, Any], prefix: str, *told: Any) -> None:
    frozen = _frozen_now(net)
    own = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers(remove_duplicate=False))}
    for name in frozen:
        state.setdefault(f"{prefix}{name}", own[name].detach())
