"""Text-to-image models: loading, synthesis, fine-tuning, features, captions.

Imported by the server and by clients that look at their images with a frozen model.
"""
