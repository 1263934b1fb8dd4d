"""Guidance by a frozen diffusion model at a client.

Imported by the methods that average weights.
"""
