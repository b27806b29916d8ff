"""
What may be shown of a secret setting.
"""

REDACTED = "********"  # in place of a secret


def without_query(text: str) -> str:
    """Give an address as others may see it: what stands behind a ? may be a token."""
    place, mark, query = text.partition("?")
    return f"{place}{mark}{REDACTED}" if query else text
