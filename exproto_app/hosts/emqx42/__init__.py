"""EMQX 4.2: the app inside the broker's own Python process, over erlport."""
