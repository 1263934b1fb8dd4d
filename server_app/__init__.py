"""The server side: Flower's door, the driver of a run, the one protocol of evaluation.

Imported by Flower and by the in-process runtime.
"""
