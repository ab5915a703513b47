"""Traffic of devices in files and as text: recordings, captures of packets, hex dumps."""
