"""What a job needs with and without Ray: owner, workers, progress, processes. Does not use Ray."""
