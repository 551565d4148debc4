"""How one request goes over the network."""
