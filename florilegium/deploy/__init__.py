"""A federation on real machines: keys, the processes of Flower, and one of all of them on this machine."""
