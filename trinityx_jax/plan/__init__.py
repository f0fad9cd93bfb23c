"""What a TPU's own compiler says about a configuration, on a machine without one."""
