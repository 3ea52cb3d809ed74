"""TokenSR training with Lightning: data, captured features, the module, checkpoints."""
