"""Hosts: where an app runs. Each feeds the core with its events and drains what comes of them."""
