"""Ray's moving interfaces, used here and nowhere else: how Ray is joined, what it has, and how it spreads work."""
