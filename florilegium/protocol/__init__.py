"""The wire contract: payloads, their fields, phases, codec, validation of what arrives.

Both sides of every method import it; it imports config and privacy's names alone.
"""
