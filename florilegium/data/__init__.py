"""Data sets, their partitions, and the one door to a client's personal rows."""
