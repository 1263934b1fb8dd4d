"""The server side: Flower's door, the driver of a run, the one protocol of evaluation.

Imported by Flower and by the in-process runtime.
"""

import florilegium  # noqa: F401  (before a module here loads torch: it says how threads wait)
