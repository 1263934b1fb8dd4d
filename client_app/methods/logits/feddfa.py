"""Fed-DFA, client side (Wang et al., AAAI 2025, in the adapted form of docs/methods/logits.md).

Server side: strategies/logits/feddfa.py. Down: public samples, then the mean class scores and how much each sample
counts. Up: class scores, and the steps of an attack that changed the model's decision.
Axes: N samples, B batch, C classes, S image side, T tokens, H width of a token's embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client_app.batches import EVALUATION_BATCH
from client_app.blocks.logits import LogitsClient, LogitsClientSettings
from client_app.client import Client
from florilegium.config.fields import section, setting
from florilegium.models.bodies import Classifier
from florilegium.protocol.payloads import BoundaryLogits, Samples

PIXELS = 2.0  # the range of an image's values, in which the paper's sizes are given
DEVIATIONS = 4.0  # what stands for that range in embeddings of tokens: pixels deviate by about a quarter of theirs


@section
class FedDFAClientSettings(LogitsClientSettings):
    """Client settings of Fed-DFA: the attack on public samples, and the distillation."""

    label_weight: float = setting(
        0.0, "weight of the cross-entropy with the class of the highest mean score; none in the paper", low=0, high=1e4
    )
    steps: int = setting(5, "K: steps of the attack (PGD) on each public sample", low=1, high=1000)
    step_size: float = setting(0.01, "gamma: size of a step, as a part of the range of a pixel", low=0, high=1)
    largest: float = setting(0.1, "epsilon: largest change of a pixel, as a part of its range", low=0, high=1)
    distill_epochs: int = setting(
        2, "passes over the distillation set in a round; 10 in the paper", low=0, high=1_000_000
    )
    replay: int = setting(
        480,
        "earlier public samples that stay in the distillation set, with the scores they came with (our choice)",
        low=0,
        high=1_000_000,
    )


class FedDFAClient(LogitsClient):
    """Answers public samples, says how far they are from its decision boundary, and learns the mean scores."""

    Settings = FedDFAClientSettings
    settings: FedDFAClientSettings

    def represent(self, client: Client, samples: Samples) -> BoundaryLogits:  # type: ignore[override]
        """The class scores and the steps of the attack."""  # another payload than the other methods of class scores
        answer, model = super().represent(client, samples), client.classifier.eval()
        parts = [
            self.steps_of(client, model, x.to(client.device)) for x in client.inputs(samples).split(EVALUATION_BATCH)
        ]
        steps_N = torch.cat(parts) if parts else torch.zeros(0)
        return BoundaryLogits(answer.ids, answer.logits, steps_N)

    def steps_of(self, client: Client, model: Classifier, x: Tensor) -> Tensor:
        """[B] for images [B, 3, S, S], or for token ids [B, T]; the embeddings of these are moved."""
        s = self.settings
        if client.modality == "image":
            return boundary_steps(lambda move: model(x + move), x, PIXELS, s)
        with moved_embeddings(model) as given, torch.no_grad():
            model(x)
            start = given.pop("seen")

            def scores(move: Tensor) -> Tensor:
                given["move"] = move
                return model(x)

            return boundary_steps(scores, start, DEVIATIONS * start.std().item(), s)


def boundary_steps(scores: Callable[[Tensor], Tensor], start: Tensor, size: float, s: FedDFAClientSettings) -> Tensor:
    """[B] float on the CPU: the first of K steps of PGD after which the decision is another; K where none changes it.

    `scores(move)` gives [B, C] of inputs like `start` that were moved by `move`; `size` is the range of a value. A step
    is size * gamma * sign of the gradient of CE with the model's own decision, kept within size * epsilon.
    """
    move, found_B = torch.zeros_like(start), torch.full((len(start),), float(s.steps))
    with torch.no_grad():
        label_B = scores(move).argmax(1)
    still_B = torch.ones(len(start), dtype=torch.bool)
    for k in range(1, s.steps + 1):
        with torch.enable_grad():
            loss = cross_entropy(scores(move.requires_grad_(True)), label_B, reduction="sum")
            (slope,) = torch.autograd.grad(loss, move)
        move = (move.detach() + size * s.step_size * slope.sign()).clamp(-size * s.largest, size * s.largest)
        with torch.no_grad():
            changed_B = (scores(move).argmax(1) != label_B).cpu()
        found_B[changed_B & still_B] = float(k)
        still_B &= ~changed_B
    return found_B


@contextmanager
def moved_embeddings(model: Classifier) -> Iterator[dict[str, Tensor]]:
    """Inside, the embeddings of tokens [B, T, H] are moved by what is given as `move`; `seen` are those of before."""
    given: dict[str, Tensor] = {}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        given["seen"] = output.detach()
        return output + given["move"] if "move" in given else output

    embedding = next(module for module in model.body.modules() if isinstance(module, nn.Embedding))
    handle = embedding.register_forward_hook(hook)
    try:
        yield given
    finally:
        handle.remove()
