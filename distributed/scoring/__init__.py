"""From a pool to its scores: what is left to do, the line from row to row, and what is published."""
