"""The prompts under which the frozen diffusion model looks at an image.

Axes: N samples, C classes, K negatives, Q = 2 + K prompts of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from florilegium import seeds
from florilegium.config.diffusion import DiffusionSettings
from florilegium.config.run import WorkerSettings
from florilegium.diffusion.features import FeatureExtractor
from florilegium.diffusion.spread import SpreadExtractor
from florilegium.methods.guidance.settings import FedDifRCSettings, GuidanceSettings
from florilegium.resources import located


def opened(given: DiffusionSettings, workers: WorkerSettings | None = None) -> FeatureExtractor:
    """The frozen model of conf.diffusion, its weights read when first needed; `workers` of the server's share its work.

    AssetError, SettingsError.
    """
    if workers is not None and workers.count:
        return SpreadExtractor(located(given.model), given, workers)
    return FeatureExtractor(located(given.model), given)


# -- prompts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Questions:
    """Distinct prompts, and which of them each sample is looked at under: H, the positive, K negatives."""

    prompts: list[str]
    which_NQ: Tensor


def class_prompts(classes: Any, s: GuidanceSettings) -> list[str]:
    """The prompt of each class. ValueError names a class without one, or that shares another's."""
    names = [str(name) for name in classes]
    if unknown := sorted(set(s.prompts) - set(names)):
        raise ValueError(f"guidance.prompts names {unknown[0]!r}, which is no class; there are {', '.join(names)}")
    made: dict[str, str] = {}
    for label, name in enumerate(names):
        if s.prompts:
            prompt = s.prompts.get(name, "")
        else:
            prompt = s.prompt.format(name=name) if s.prompt is not None else classes.prompt(label)
        if not prompt.strip():
            raise ValueError(f"class {name!r} has no prompt in guidance.prompt{'s' if s.prompts else ''}")
        if prompt in made:
            raise ValueError(f"classes {made[prompt]!r} and {name!r} have the same prompt {prompt!r}")
        made[prompt] = name
    return list(made)


def questions(prompts_C: Sequence[str], labels_N: Tensor, ids_N: Tensor, s: FedDifRCSettings, seed: int) -> Questions:
    """What FedDifRC asks the decoder about each sample.

    Negatives are drawn once a sample, without replacement, by (seed, id); there are no more of them than wrong classes.
    """
    if not s.supervised:
        others = s.others
        prompts = [s.visual_prompt, s.similar_prompt, *(s.other_prompt.format(name=name) for name in others)]
        drawn = [_drawn(len(others), s.negatives, seed, i) for i in ids_N.tolist()]
        which = [[0, 1, *(2 + n for n in few)] for few in drawn]
    else:
        prompts, many, which = [s.noise_prompt, *prompts_C], len(prompts_C) - 1, []
        wanted = 0 if s.negatives_from == "images" else min(s.negatives, many)
        for label, i in zip(labels_N.tolist(), ids_N.tolist(), strict=True):
            few = _drawn(many, wanted, seed, i)
            which.append([0, 1 + label, *(1 + n + (n >= label) for n in few)])
    width = len(which[0]) if which else 2
    return Questions(prompts, torch.tensor(which, dtype=torch.int64).view(-1, width))


def _drawn(there: int, wanted: int, seed: int, sample: int) -> list[int]:
    """`wanted` of `there` numbers, ascending; all of them need no draw."""
    if wanted >= there:
        return list(range(there))
    return sorted(torch.randperm(there, generator=seeds.generator(seed, "negatives", sample))[:wanted].tolist())
