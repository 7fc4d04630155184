"""Thin entry points, one module a command: parse, call one function, report, exit code."""
