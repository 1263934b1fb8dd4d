"""What judges images: a classifier trained on real images, and CLIP. Axes: N images, C classes, E embedding width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

MODES = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as image processors keep them


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images; without a size they keep their own."""

    size: tuple[int, int] | None = None
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    mode: str = "bicubic"

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> float, resized (antialiased) and normalised per channel."""
        pixels = images.float() / 255
        if self.size and tuple(pixels.shape[-2:]) != self.size:
            pixels = interpolate(pixels, self.size, mode=self.mode, antialias=True, align_corners=False).clamp(0, 1)
        mean_3, std_3 = (torch.tensor(list(x), device=pixels.device).view(1, 3, 1, 1) for x in (self.mean, self.std))
        return (pixels - mean_3) / std_3


def accuracy(predicted_N: Tensor, labels_N: Tensor, classes: int) -> float:
    """Top-1 accuracy over all images; nan for none."""
    if not len(labels_N):
        return float("nan")
    # loading it takes three seconds of a core, because it loads transformers and matplotlib; a start need not wait
    from torchmetrics.functional.classification import multiclass_accuracy

    return multiclass_accuracy(predicted_N, labels_N, num_classes=classes, average="micro").item()


def confusion(predicted_N: Tensor, labels_N: Tensor, classes: int) -> Tensor:
    """[C, C] counts: row the true label, column the predicted one."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    return multiclass_confusion_matrix(predicted_N, labels_N, num_classes=classes)


class Judge:
    """The GAN-test: any transformers image classifier, trained on real images, that labels generated ones."""

    def __init__(self, model: str, device: str = "cpu", batch: int = 256) -> None:
        from transformers import AutoModelForImageClassification

        self.device, self.batch = device, batch
        self.model = AutoModelForImageClassification.from_pretrained(model, dtype=torch.float32).eval().to(device)
        self.names = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        self.preprocess = preprocessing(model)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> labels int64 [N]."""
        labels = [self.model(chunk).logits.argmax(-1).cpu() for chunk in self._chunks(images)]
        return torch.cat(labels) if labels else torch.zeros(0, dtype=torch.int64)

    def _chunks(self, images: Tensor) -> Iterator[Tensor]:
        return (self.preprocess(chunk.to(self.device)) for chunk in images.split(self.batch))

    def accuracy(self, images: Tensor, labels_N: Tensor) -> float:
        """T2I accuracy: the share of images whose predicted class is the prompt's."""
        return accuracy(self.predict(images), labels_N, len(self.names))


def preprocessing(model: str) -> Preprocessing:
    """That of a classifier's image processor; a local directory without one takes images in [-1, 1]."""
    if Path(model).is_dir() and not (Path(model) / "preprocessor_config.json").exists():
        return Preprocessing()
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(model)
    size = None
    if getattr(processor, "do_resize", True) and processor.size:
        given = dict(processor.size)
        side: Any = given.get("shortest_edge")
        size = (given["height"], given["width"]) if "height" in given else (side, side)
    mode = MODES.get(int(processor.resample), "bicubic")
    return Preprocessing(size, tuple(processor.image_mean), tuple(processor.image_std), mode)


class ClipScore:
    """Cosines of CLIP embeddings through open_clip: raw, no factor 2.5 or 100, as the papers print them."""

    def __init__(self, model: str, device: str = "cpu", batch: int = 256) -> None:
        import open_clip

        name = f"local-dir:{model}" if Path(model).is_dir() else f"hf-hub:{model}"
        self.device, self.batch = device, batch
        self.model = open_clip.create_model(name, precision="fp32", device=device).eval()
        self.tokenizer = open_clip.get_tokenizer(name)
        how = open_clip.get_model_preprocess_cfg(self.model)
        size = how["size"]
        self.preprocess = Preprocessing(
            (size, size) if isinstance(size, int) else tuple(size),
            how["mean"],
            how["std"],
            how["interpolation"] if how["interpolation"] in MODES.values() else "bicubic",
        )

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> unit vectors [N, E], on the CPU."""
        vectors = [self.model.encode_image(chunk).float().cpu() for chunk in self._chunks(images)]
        return normalize(torch.cat(vectors), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """N texts -> unit vectors [N, E], on the CPU; a repeated text is encoded once."""
        distinct = list(dict.fromkeys(texts))
        tokens = self.tokenizer(distinct).split(self.batch)
        vectors = torch.cat([self.model.encode_text(chunk.to(self.device)).float().cpu() for chunk in tokens])
        row = {text: u for u, text in enumerate(distinct)}
        return normalize(vectors, dim=-1)[[row[text] for text in texts]]

    def _chunks(self, images: Tensor) -> Iterator[Tensor]:
        return (self.preprocess(chunk.to(self.device)) for chunk in images.split(self.batch))

    def score(self, images: Tensor, prompts: Sequence[str]) -> float:
        """CLIP score: the mean over images of cos(image, its prompt)."""
        return mean_cosine(self.encode_images(images), self.encode_texts(prompts))

    def diversity(self, images: Tensor, labels_N: Tensor) -> float:
        """Mean cosine distance between two images of the same prompt; a mode collapse drives it to 0."""
        return pairwise_distance(self.encode_images(images), labels_N)


def mean_cosine(left_NE: Tensor, right_NE: Tensor) -> float:
    """Mean over rows of the cosine between unit vectors."""
    return (left_NE * right_NE).sum(-1).mean().item()


def pairwise_distance(vectors_NE: Tensor, labels_N: Tensor) -> float:
    """Mean over all pairs with equal label of 1 - cosine of unit vectors; nan where no label has two."""
    same_NN = torch.triu(labels_N[:, None] == labels_N[None], diagonal=1)
    if not same_NN.any():
        return float("nan")
    return (1 - vectors_NE @ vectors_NE.T)[same_NN].mean().item()
