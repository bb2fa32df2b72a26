"""`WS /v1/realtime`: pictures that follow what is drawn and typed. docs/realtime.md has the protocol."""
