"""What FedAFD's two sides share.

Imported by strategies/fedafd.py and client_app/methods/fedafd.
"""
