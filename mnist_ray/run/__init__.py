"""What a job needs on any engine: its owner, its workers, its progress, its processes; never Ray."""
