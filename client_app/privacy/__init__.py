"""Privacy at the client: protection of uploads, DP-SGD, and simulated attacks for measuring defences.

Imported by client_app/app.py and client_app/client.py.
"""
