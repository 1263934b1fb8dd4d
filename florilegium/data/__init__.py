"""Data sets: readers, partitions, shifts, the public set, the door to private data.

Imported by both sides; `private` and `own` by client_app and `florilegium data check` alone.
"""
