"""Where a run's records go beside its directory: Prometheus, TensorBoard, MLflow.

Opened by server_app/driver.py.
"""
