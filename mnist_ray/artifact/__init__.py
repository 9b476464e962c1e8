"""The results of training: the bundle, the predictor and the evaluation. Does not use Ray."""
