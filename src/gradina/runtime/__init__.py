"""Where and how networks run: device and dtype, engines, offload."""
