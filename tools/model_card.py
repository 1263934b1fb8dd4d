"""The model card of assets/models, from measured figures and the training's own records."""

from data_cards import table

JUDGES = ("emoji-public", "emoji-private", "fashion")
BARS = (
    ("VAE reconstruction, held-out concepts, public styles (PSNR)", "vae_psnr/public", 25.0, "{:.1f} dB"),
    ("Mini-CLIP zero-shot, held-out concepts, public styles", "zero_shot/public", 0.40, "{:.1%}"),
    ("Captions naming the class or a concept of it, public styles", "caption/public", 0.40, "{:.1%}"),
)
LOADING = """```python
pipe = StableDiffusionPipeline.from_pretrained("assets/models/mini-sd", torch_dtype=torch.float32)
clip, preprocess = open_clip.create_model_from_pretrained("local-dir:assets/models/mini-clip")
tokenizer = open_clip.get_tokenizer("local-dir:assets/models/mini-clip")
processor = BlipProcessor.from_pretrained("assets/models/mini-captioner")
captioner = BlipForConditionalGeneration.from_pretrained("assets/models/mini-captioner", dtype=torch.float32)
judge = ResNetForImageClassification.from_pretrained("assets/models/judges/emoji-private", dtype=torch.float32)
```"""


def met(value: float, bar: float) -> str:
    return "met" if value >= bar else "missed"


def bars(figures: dict) -> list[list[str]]:
    lines = [
        [name, form.format(figures[key]), form.format(bar), met(figures[key], bar)] for name, key, bar, form in BARS
    ]
    emoji, judge = figures["emoji"]["emoji-public"], figures["judge/emoji-public"]
    fashion = figures["fashion"]["fashion"]
    lines.append(
        ["T2I accuracy, 24 emoji classes, judge emoji-public", f"{emoji:.1%}", f"{judge:.1%}", met(emoji, judge)]
    )
    lines.append(["T2I accuracy, 10 fashion classes, judge fashion", f"{fashion:.1%}", "85.0%", met(fashion, 0.85)])
    return lines


def training(facts: dict) -> list[list]:
    lines = []
    for name, fact in facts.items():
        lines += [[name, fact["steps"], fact["batch"], fact["seconds"]]]
        if "together" in fact:
            first = fact["together"]
            lines += [[f"{name}, both towers before", first["steps"], first["batch"], first["seconds"]]]
    return lines


def model_card(figures: dict, facts: dict) -> str:
    emoji, fashion = figures["emoji"], figures["fashion"]
    said = "\n".join(f"- {text}: *{caption}*" for text, caption in figures["caption/examples"])
    others = [
        ["VAE PSNR, private styles", f"{figures['vae_psnr/private']:.1f} dB"],
        ["Zero-shot, private styles", f"{figures['zero_shot/private']:.1%}"],
        ["Captions, private styles", f"{figures['caption/private']:.1%}"],
        ["T2I accuracy by judge emoji-private, before any tuning", f"{emoji['emoji-private']:.1%}"],
        *[[f"Judge {n} on real test images", f"{figures[f'judge/{n}']:.1%}"] for n in JUDGES],
    ]  # fmt: skip
    return f"""# Mini models

One generic set for both data sets, pre-trained on public data only: the public emoji styles without any validation or
test concept, and 20,000 Fashion-MNIST images that no client holds. Weights are fp16 safetensors; load them in fp32.
Built by `tools/build_assets.py`. The judges are no part of the set: they learn the real training images they judge by.
Judge emoji-public is not shipped: it serves these figures alone. `backbones/` has its own card, and so has every judge.

| folder | class | what |
| --- | --- | --- |
| `mini-sd` | diffusers `StableDiffusionPipeline` | f=4 VAE, 4.3 M U-Net, the mini CLIP's text, v-prediction |
| `mini-sd-guided` | LoRA weights of the U-Net | one call a step in the place of guidance's two; it has its own card |
| `mini-glide` | `GlidePipeline` of florilegium | pixels of 16x16 and a text encoder of its own; it has its own card |
| `mini-clip` | open_clip `CLIP` | ResNet on 64x64 and a 3-layer text tower, 128 wide |
| `mini-captioner` | transformers `BlipForConditionalGeneration` | 4-layer ViT on 8x8 patches, 2-layer decoder |
| `judges/*` | transformers `ResNetForImageClassification` | GAN-test classifiers, 64x64 input |

{LOADING}

Pictures are 32x32, latents 4x8x8, prompts at most 24 tokens. The prompt template is "A picture of a {{class}}.";
guidance {emoji["guidance"]} (emoji) and {fashion["guidance"]} (fashion) did best on seeds that the figures do not use.

## Figures

Measured by `tools/measure_assets.py`; {emoji["images_per_class"]} generated images a class, 20 steps.

{table(["figure", "measured", "bar", ""], bars(figures))}
{table(["also", "measured"], others)}
A T2I accuracy says that the judge recognises the class; the U-Net has seen the public training pictures that the
public judge learnt from, so a high figure may come from remembered pictures as well as from new ones.

## Training

On two CPU cores that other work shared, so the seconds are wall-clock and long. fp32, AdamW, cosine, averaged weights.
Where a row has fewer steps than its tool's default, the training was cut short: `make assets` trains longer. The
U-Net's length was shortened twice while it ran, so its learning rate fell in steps rather than along one cosine.

{table(["model", "steps", "batch", "seconds"], training(facts))}
## Samples

Not picked: the first eight of every class, one class a row, in the classes' order.

![emoji](samples-emoji.png)

![fashion](samples-fashion.png)

Captions of held-out public pictures (label: *caption*), every sixtieth:

{said}

## Limits

32 pixels and small data: outlines are blurry, rare classes (reptile, boat, musical instrument) are the weakest, and
prompts far from the templates or outside the vocabulary mean little. For experiments, not for products. Licences of the
pictures behind the weights are in the data cards (`assets/data/*/README.md`); weights are offered under the same terms.
"""
