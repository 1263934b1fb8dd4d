"""What every method promises, as checks for tests: of our methods and of those of other packages.

Imported by tests alone; it is not part of Flower's bundle.
"""
