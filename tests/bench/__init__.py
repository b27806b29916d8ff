"""Our program beside its peers, on the same work in turn: ``make bench``."""
