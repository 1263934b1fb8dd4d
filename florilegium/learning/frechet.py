"""How far drawn images are from real ones: FID (arXiv 1706.08500) and Inception Score (arXiv 1606.03498).

Both by torchmetrics. The standard figures need the Inception net of torch-fidelity. Any other image encoder gives
figures of the same formulas that cannot be compared with a paper's, so they have other names.
Axes: N images, E features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from florilegium import seeds
from florilegium.learning.metrics import ClipScore, Judge

PARTS = 10  # over which the score is averaged, as in the paper
BATCH = 64


class Encoded(nn.Module):
    """A function of uint8 [N, 3, H, W] as the module that torchmetrics wants."""

    def __init__(self, encode: Callable[[Tensor], Tensor], width: int | None = None) -> None:
        super().__init__()
        self.encode = encode
        if width is not None:
            self.num_features = width

    def forward(self, images: Tensor) -> Tensor:
        """[N, E] features, or [N, C] scores of classes; in float64, because a sure classifier's other classes would be
        0 in float32, and their logarithm is needed."""
        with torch.no_grad():
            return self.encode(images).double().cpu()


class Quality:
    """`quality(real, drawn, seed)`: the figures by name. `features` give [N, E] and, where there are classes, `scores`
    [N, C]; `standard` says whether they are Inception's."""

    def __init__(self, features: nn.Module, scores: nn.Module | None, standard: bool) -> None:
        self.features, self.scores = features, scores
        self.names = ("fid", "inception_score") if standard else ("frechet", "class_score")

    def __call__(self, real: Any, drawn: Tensor, seed: int) -> dict[str, float]:
        """Of real images, a tensor or stored ones, and drawn ones, uint8 [N, 3, H, W], two or more of each."""
        from torchmetrics.image.fid import FrechetInceptionDistance

        distance = FrechetInceptionDistance(feature=self.features)
        for images, is_real in ((real, True), (drawn, False)):
            for part in images.split(BATCH):
                distance.update(part, real=is_real)
        found = {self.names[0]: float(distance.compute())}
        if self.scores is not None:
            found[self.names[1]] = class_score(self.scores, drawn, seed)
        return found


def class_score(scores: nn.Module, drawn: Tensor, seed: int) -> float:
    """exp of the mean KL(p(y|x) || p(y)): 1 where all images look alike or are unclear, C at best."""
    import warnings

    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its buffer, which is small; of the spread over one part
        score = InceptionScore(feature=scores, splits=max(1, min(PARTS, len(drawn) // 2)))
        for part in drawn.split(BATCH):
            score.update(part)
        with seeds.scoped(seed, "inception score"):  # it shuffles by the global generator
            return float(score.compute()[0])


def of_inception(device: str) -> Quality:
    """The standard figures. ValueError, one line, says how to get the net where it is missing."""
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        nets = [NoTrainInceptionV3("inception-v3-compat", [name]) for name in ("2048", "logits_unbiased")]
    except Exception as error:  # no package, no network, a torn file: each has its own class
        raise ValueError(
            f"evaluation.generic.extractor=inception cannot be used ({type(error).__name__}): {_way()}; "
            "extractor=clip needs nothing more, but gives no standard FID"
        ) from error
    features, scores = (partial(_on, net.to(device), device) for net in nets)
    return Quality(Encoded(features, 2048), Encoded(scores), standard=True)


def _on(net: nn.Module, device: str, images: Tensor) -> Tensor:
    return net(images.to(device))


def _way() -> str:
    """How to get the Inception net: the package, then its weights, which it fetches itself where there is a network."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError:
        return "install torch-fidelity (pip install 'florilegium[fid]')"
    place = f"{torch.hub.get_dir()}/checkpoints"
    return f"where there is no network, fetch {URL_INCEPTION_V3} elsewhere and put it into {place}"


def of_clip(clip: ClipScore) -> Quality:
    """Distances between CLIP's image embeddings; CLIP has no classes."""
    width = clip.encode_images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape[1]
    return Quality(Encoded(clip.encode_images, width), None, standard=False)


def of_classifier(judge: Judge) -> Quality:
    """Distances between what a classifier's last layer gets, and the score of its classes. ValueError."""
    heads = [m for m in judge.model.modules() if isinstance(m, nn.Linear) and m.out_features == len(judge.names)]
    if not heads:
        raise ValueError("evaluation.generic.extractor: this classifier does not end in a linear layer")
    head = heads[-1]

    def features(images: Tensor) -> Tensor:
        kept: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda module, given: kept.append(given[0].flatten(1)))
        try:
            scores(images)
        finally:
            hook.remove()
        return kept[0]

    def scores(images: Tensor) -> Tensor:
        return judge.model(judge.preprocess(images.to(judge.device))).logits

    return Quality(Encoded(features, head.in_features), Encoded(scores), standard=False)
