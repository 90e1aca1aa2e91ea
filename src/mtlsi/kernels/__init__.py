"""How the network's operations are computed; what they are is in ``model/``."""
