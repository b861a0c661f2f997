"""Bytes to requests and back; touches no tensor."""
