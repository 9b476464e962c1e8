"""The batch job without a cluster: plan, units, parts, proof; never torch, never Ray."""
