"""What `make pictures` draws for the documents: a proxy at work, in a terminal and in a browser."""
