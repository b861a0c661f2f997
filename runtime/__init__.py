"""Model in, tokens out; knows no network."""
