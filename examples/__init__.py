"""Examples that run: the assistant, and small programs."""
