"""Pages and tables made from run directories; torch-free.

Imported by the command line and by server_app/driver.py.
"""
