"""GLIDE (arXiv 2112.10741) in diffusers' classes: text encoder, tokenizer, converter, sampler, pipeline.

Imported by florilegium/diffusion alone. The path of `text_encoder` stands in saved pipelines: it must not move.
"""
