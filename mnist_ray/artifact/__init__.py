"""What training leaves behind: the bundle, the predictor and evaluation; never Ray."""
