"""Client models: bodies, their construction from settings, dual encoders for retrieval.

Imported by both sides.
"""
