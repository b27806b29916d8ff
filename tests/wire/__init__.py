"""The raw peers, targets and waits that all tests share; nothing here knows the code under test."""
