"""Drivers: the hosts that an app runs on."""
