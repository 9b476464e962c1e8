"""The network and its training, on any number of workers; never Ray."""
