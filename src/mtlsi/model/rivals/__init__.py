"""The decoders that MTLSI-Net is compared with, under one contract; see ``mtlsi.model.decoders``."""
