"""What operators see and set: logs, metrics, probes, timing, recorders, certificates, listening sockets."""
