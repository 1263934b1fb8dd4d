"""Guidance by a frozen diffusion model (FedDifRC, SemanticFL): settings, prompts, anchors of both sides.

Imported by strategies/blocks/guidance.py, client_app/guidance and the methods that take guidance.
"""
