"""The network and its training on any number of workers. Does not use Ray."""
