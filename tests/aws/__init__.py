"""A strict local AWS, for Kiln's tests and its demo: see README.md beside this file."""
