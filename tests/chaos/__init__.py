"""A gateway and a broker in bad weather: whatever happens, what a device was told is safe has arrived."""
