"""
What may be told of a setting that holds a secret.
"""

REDACTED = "********"  # in place of a secret


def without_query(text: str) -> str:
    """Give an address as others may see it: what stands behind a ? may be a token."""
    place, mark, query = text.partition("?")
    return f"{place}{mark}{REDACTED}" if query else text
