"""The edge: HTTP, the command line, and everything a client or an operator touches."""
