"""Training on a published checkpoint and one's own pictures, on a GPU: distillation, and the control branch."""
