"""A command of ours on a cluster: what is shipped there, and how Ray's job server is asked to run it."""
