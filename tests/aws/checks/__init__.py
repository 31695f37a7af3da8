"""Tests of the local AWS itself: each strictness fails as it should. Run by `scripts/aws-local --check [FILTER]`."""
