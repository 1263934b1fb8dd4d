"""The run directory: written, read, locked, logged, observed.

Only the server writes a run; anybody may read one. No module here imports torch but `files`.
"""
