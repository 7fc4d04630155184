"""The nightly triage of a fleet: each night scored, selected from, compared with those before, and handed on."""
