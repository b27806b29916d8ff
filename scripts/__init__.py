"""What is done with a clone of the project, and is no part of the program."""
