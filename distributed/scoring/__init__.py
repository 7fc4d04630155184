"""Scoring of a pool: the rows left to do, the line from row to row, and the published record."""
