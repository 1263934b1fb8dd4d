"""Client halves, one file per method; each has its server half of the same name in strategies/."""
