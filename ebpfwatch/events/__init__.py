"""From bytes to typed events; mirrors probes/contract.h."""
