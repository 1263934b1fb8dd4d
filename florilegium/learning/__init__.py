"""Mathematics of learning: the training loop, averaging, losses, similarity, metrics, retrieval.

Imported by both sides; it knows no message, no data set and no method.
"""
