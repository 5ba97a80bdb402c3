"""Data: what a run reads, in an order that the step number alone decides."""
