"""A discrete-event simulation of a server's devices, for schedulers that decide as the real one does."""
