"""What FedMEKT's two sides share.

Imported by strategies/fedmekt.py.
"""
