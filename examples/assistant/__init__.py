"""The assistant: a home-command model of a few million parameters, and everything that made it."""
