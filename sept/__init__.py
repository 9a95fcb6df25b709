"""The command line. It is the top: it imports everything, and nothing imports it."""
