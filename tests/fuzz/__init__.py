"""Random inputs for all that reads what others have written, and what has to be so whatever comes."""
