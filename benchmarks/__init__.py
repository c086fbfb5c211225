"""Declared benchmark cells, the runner that records them, and the tables made from the records."""
