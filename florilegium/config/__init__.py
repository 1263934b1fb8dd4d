"""Settings: typed sections with defaults and bounds, and their composition by Hydra.

The leaf of the house: everybody may import it, it imports only seeds and assets.
"""
